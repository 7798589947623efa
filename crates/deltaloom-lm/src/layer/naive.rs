//! For tests: weights as plain rows, and a layer in F64 written from the formulas, index by index.
//! It shares no arithmetic with the layer that it checks.

use std::borrow::Cow;
use std::collections::BTreeMap;

use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{Rng as _, SeedableRng as _};

use super::*;

/// Weights of one tenant.
#[derive(Debug, Clone)]
pub(super) struct Tenant {
    pub(super) matrices: BTreeMap<MatrixRole, Vec<f32>>,
    pub(super) vectors: BTreeMap<VectorRole, Vec<f32>>,
}

/// Dense weights of tenants.
pub(super) struct Dense {
    pub(super) config: LayerConfig,
    pub(super) tenants: Vec<Tenant>,
}

pub(super) fn random(seed: u64, count: usize) -> Vec<f32> {
    let mut generator = Xoshiro256PlusPlus::seed_from_u64(seed);
    let mut uniform = || f32::from(i16::try_from(generator.next_u64() >> 50).unwrap() - (1 << 13)) / 8192.0;
    (0..count).map(|_| uniform()).collect()
}

impl Tenant {
    /// Weights of about the usual size; those of norms are near 1.
    pub(super) fn random(config: &LayerConfig, seed: u64) -> Self {
        let matrix = |role: MatrixRole| {
            let [rows, cols] = config.shape(role);
            let scale = 1.5 / (cols as f32).sqrt();
            let values = random(seed + role as u64, rows * cols);
            (role, values.iter().map(|x| x * scale).collect())
        };
        let vector = |(role, len): (VectorRole, usize)| {
            let about = match role {
                VectorRole::Norm1Weight
                | VectorRole::Norm2Weight
                | VectorRole::PostNorm1Weight
                | VectorRole::PostNorm2Weight
                | VectorRole::QueryNormWeight
                | VectorRole::KeyNormWeight => 1.0,
                _ => 0.0,
            };
            let values = random(seed + 100 + role as u64, len);
            (role, values.iter().map(|x| about + 0.2 * x).collect())
        };
        Self {
            matrices: config.matrices().into_iter().map(matrix).collect(),
            vectors: config.vectors().into_iter().map(vector).collect(),
        }
    }
}

impl LayerWeights for Dense {
    fn matmul(
        &self,
        role: MatrixRole,
        batch: &Batch,
        x: &[f32],
        y: &mut [f32],
        _run: &Run<'_>,
    ) -> Result<()> {
        let [rows, cols] = self.config.shape(role);
        for (sequence, tokens) in batch.places() {
            let matrix = &self.tenants[sequence.tenant.number()].matrices[&role];
            for token in tokens {
                let x = &x[token * cols..][..cols];
                for (y, row) in y[token * rows..][..rows].iter_mut().zip(matrix.chunks_exact(cols)) {
                    *y = row.iter().zip(x).map(|(w, x)| w * x).sum();
                }
            }
        }
        Ok(())
    }

    fn vector(&self, role: VectorRole, tenant: TenantId) -> Result<Option<Cow<'_, [f32]>>> {
        Ok(self.tenants[tenant.number()].vectors.get(&role).map(|vector| Cow::Borrowed(vector.as_slice())))
    }
}

/// `[token][element]`.
type Rows = Vec<Vec<f64>>;

/// The layer's output for one sequence that begins at `position`.
pub(super) fn forward_f64(config: &LayerConfig, weights: &Tenant, position: usize, x: &[f32]) -> Vec<f64> {
    let x: Rows = x.chunks(config.width).map(|row| row.iter().map(|x| f64::from(*x)).collect()).collect();
    let linear = |role: MatrixRole, x: &Rows| -> Rows {
        let [rows, cols] = config.shape(role);
        let (matrix, bias) = (&weights.matrices[&role], weights.vectors.get(&role.bias()));
        let one = |x: &Vec<f64>, row: usize| {
            let product: f64 = (0..cols).map(|col| f64::from(matrix[row * cols + col]) * x[col]).sum();
            product + bias.map_or(0.0, |bias| f64::from(bias[row]))
        };
        x.iter().map(|x| (0..rows).map(|row| one(x, row)).collect()).collect()
    };
    let scale = if let Scale::Constant(scale) = config.attention.scale {
        f64::from(scale)
    } else {
        1.0 / (config.head_size as f64).sqrt()
    };
    let norm = |weight: VectorRole, bias: Option<VectorRole>, x: &Rows| -> Rows {
        let n = config.width as f64;
        let one = |x: &Vec<f64>| {
            let (mean, epsilon, offset) = match config.norm {
                Norm::LayerNorm { epsilon } => (x.iter().sum::<f64>() / n, epsilon, 0.0),
                Norm::RmsNorm { epsilon } => (0.0, epsilon, 0.0),
                Norm::ZeroCentredRmsNorm { epsilon } => (0.0, epsilon, 1.0),
            };
            let spread = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
            let at =
                |role: &VectorRole, i: usize| weights.vectors.get(role).map(|vector| f64::from(vector[i]));
            (0..config.width)
                .map(|i| {
                    (x[i] - mean) / (spread + f64::from(epsilon)).sqrt()
                        * (offset + at(&weight, i).unwrap_or(1.0 - offset))
                        + bias.and_then(|bias| at(&bias, i)).unwrap_or(0.0)
                })
                .collect()
        };
        x.iter().map(one).collect()
    };

    let normed = norm(VectorRole::Norm1Weight, Some(VectorRole::Norm1Bias), &x);
    let (queries, keys) = (config.query_width(), config.key_value_width());
    let [mut q, mut k, v] = match config.projection {
        Projection::Fused => {
            let fused = linear(MatrixRole::Qkv, &normed);
            let part = |from: usize, to: usize| fused.iter().map(|row| row[from..to].to_vec()).collect();
            [part(0, queries), part(queries, queries + keys), part(queries + keys, queries + 2 * keys)]
        }
        Projection::Separate => {
            [MatrixRole::Query, MatrixRole::Key, MatrixRole::Value].map(|role| linear(role, &normed))
        }
    };
    let size = config.head_size;
    let plan = &config.attention;
    let norm_of_heads = plan.qk_norm.as_ref();
    let head_norm = |weight: VectorRole, head: &mut [f64]| {
        let (epsilon, offset) = match norm_of_heads.map(|it| it.norm) {
            Some(Norm::RmsNorm { epsilon }) => (epsilon, 0.0),
            Some(Norm::ZeroCentredRmsNorm { epsilon }) => (epsilon, 1.0),
            _ => return,
        };
        let vector = weights.vectors.get(&weight).filter(|_| config.has_head_norms());
        let spread = head.iter().map(|x| x * x).sum::<f64>() / size as f64;
        for (i, x) in head.iter_mut().enumerate() {
            let weight = vector.map_or(1.0, |vector| offset + f64::from(vector[i]));
            *x *= weight / (spread + f64::from(epsilon)).sqrt();
        }
    };
    let is_after = norm_of_heads.is_some_and(|norm| norm.place == NormPlace::After);
    if !is_after {
        q.iter_mut()
            .flat_map(|row| row.chunks_mut(size))
            .for_each(|q| head_norm(VectorRole::QueryNormWeight, q));
        k.iter_mut()
            .flat_map(|row| row.chunks_mut(size))
            .for_each(|k| head_norm(VectorRole::KeyNormWeight, k));
    }
    // As a complex number: element i of a head is the real part, element i + size / 2 the
    // imaginary part.
    let turned = |weight: VectorRole, head: &[f64], at: usize, number: usize| -> Vec<f64> {
        let mut head = head.to_vec();
        if let Positions::Rotary { theta, table, .. } = &plan.positions {
            let factor = table.attention_factor();
            let rates = table.rates(*theta, size, number);
            for i in 0..size / 2 {
                let rate = match table {
                    Table::Default => f64::from(*theta).powf(-2.0 * i as f64 / size as f64),
                    _ => f64::from(rates[i]),
                };
                let angle = at as f64 * rate;
                let (re, im) = (head[i], head[i + size / 2]);
                head[i] = factor * (re * angle.cos() - im * angle.sin());
                head[i + size / 2] = factor * (re * angle.sin() + im * angle.cos());
            }
        }
        if is_after {
            head_norm(weight, &mut head);
        }
        head
    };
    let group = config.query_heads / config.key_value_heads;
    let mut attended: Rows = vec![vec![0.0; queries]; x.len()];
    for t in 0..x.len() {
        let number = match &plan.positions {
            Positions::Rotary { table, .. } => table.number(position + t),
            Positions::None => 0,
        };
        let seen: Vec<(usize, [usize; 2])> =
            (0..x.len()).filter_map(|s| Some((s, pair(plan, position + t, position + s)?))).collect();
        for h in 0..config.query_heads {
            let (own, shared) = (h * size, h / group * size);
            let gain = match norm_of_heads.map(|norm| &norm.gain) {
                Some(Gain::Calibrated(gains)) => f64::from(gains[h]),
                _ => 1.0,
            };
            let n = (position + t + 1) as f64;
            let law = match plan.law {
                None => 1.0,
                Some(Law::LogLength { trained }) => (n.ln() / (trained as f64).ln()).max(1.0),
                Some(Law::Floor { every, slope }) => 1.0 + slope * (1.0 + (n / every as f64).floor()).ln(),
            };
            let score = |(s, [of_query, of_key]): (usize, [usize; 2])| -> f64 {
                let q = turned(VectorRole::QueryNormWeight, &q[t][own..own + size], of_query, number);
                let k = turned(VectorRole::KeyNormWeight, &k[s][shared..shared + size], of_key, number);
                (0..size).map(|i| q[i] * k[i]).sum::<f64>() * scale * gain * law
            };
            let weight: Vec<f64> = seen.iter().map(|seen| score(*seen).exp()).collect();
            let total: f64 = weight.iter().sum();
            for i in 0..size {
                attended[t][own + i] =
                    seen.iter().zip(&weight).map(|((s, _), weight)| weight / total * v[*s][shared + i]).sum();
            }
        }
    }
    let add = |a: &Rows, b: &Rows| -> Rows {
        a.iter().zip(b).map(|(a, b)| a.iter().zip(b).map(|(a, b)| a + b).collect()).collect()
    };
    let after = |weight: VectorRole, x: Rows| match config.has_post_norms {
        true => norm(weight, None, &x),
        false => x,
    };
    let y = add(&x, &after(VectorRole::PostNorm1Weight, linear(MatrixRole::Output, &attended)));

    let normed = norm(VectorRole::Norm2Weight, Some(VectorRole::Norm2Bias), &y);
    let mut hidden = linear(MatrixRole::Up, &normed);
    match config.feed_forward {
        FeedForward::Gelu(form) => hidden.iter_mut().flatten().for_each(|x| *x *= normal_share(form, *x)),
        FeedForward::Relu => hidden.iter_mut().flatten().for_each(|x| *x = if *x > 0.0 { *x } else { 0.0 }),
        FeedForward::SwiGlu => {
            let gate = linear(MatrixRole::Gate, &normed);
            let pairs = hidden.iter_mut().flatten().zip(gate.iter().flatten());
            pairs.for_each(|(x, gate)| *x *= gate / (1.0 + (-gate).exp()));
        }
        FeedForward::GeGlu(form) => {
            let gate = linear(MatrixRole::Gate, &normed);
            let pairs = hidden.iter_mut().flatten().zip(gate.iter().flatten());
            pairs.for_each(|(x, gate)| *x *= gate * normal_share(form, *gate));
        }
    }
    add(&y, &after(VectorRole::PostNorm2Weight, linear(MatrixRole::Down, &hidden))).concat()
}

/// The positions of query `i` and key `j` by the formulas of each method; `None` if it does not see
/// the key.
fn pair(plan: &AttentionPlan, i: usize, j: usize) -> Option<[usize; 2]> {
    let is_seen = match plan.reach {
        Reach::Full => true,
        Reach::Causal => j <= i,
        Reach::Window { tokens, sinks } => j <= i && (i - j < tokens || j < sinks),
        Reach::Chunk { tokens } => j <= i && i / tokens == j / tokens,
    };
    let own = [i, j];
    let Positions::Rotary { map, .. } = plan.positions else { return is_seen.then_some(own) };
    let positions = match (map, plan.reach) {
        (PositionMap::Identity, Reach::Window { tokens, sinks }) if j < sinks => {
            [i.min(sinks + tokens - 1), j]
        }
        (PositionMap::Identity, _) => own,
        (PositionMap::Grouped { group, neighbours }, _) if i >= j + neighbours => {
            [i / group + neighbours - neighbours / group, j / group]
        }
        (PositionMap::DualChunk { chunk, local, saturate }, _) => {
            let most = saturate.unwrap_or(chunk + local);
            let query = match (i / chunk).saturating_sub(j / chunk) {
                0 => i % chunk,
                1 => (i % chunk + chunk).min(most),
                _ => most,
            };
            [query, j % chunk]
        }
        (PositionMap::Clipped { at }, _) if i >= j + at => [at, 0],
        (PositionMap::Grouped { .. } | PositionMap::Clipped { .. }, _) => own,
    };
    is_seen.then_some(positions)
}

/// The fraction of the normal distribution below `x`: by its power series, or by tanh.
fn normal_share(form: Gelu, x: f64) -> f64 {
    match form {
        Gelu::Erf => {
            let (mut term, mut sum) = (x, x);
            for n in 1..200 {
                term *= x * x / f64::from(2 * n + 1);
                sum += term;
            }
            0.5 + sum * (-x * x / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt()
        }
        Gelu::Tanh => {
            0.5 * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3))).tanh())
        }
    }
}
