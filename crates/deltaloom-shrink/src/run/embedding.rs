//! The embedding and the head of a student, before its layers.

use std::collections::BTreeMap;

use deltaloom::{Error, Result};
use deltaloom_lm::model::HEAD;

use super::candidates::Candidate;
use super::settings::Settings;
use crate::branches::embedding::Directions;
use crate::branches::{Statistics, low_rank, quantise};
use crate::data::Texts;
use crate::forms::{Dense, FloatType, Form};
use crate::matrix::Matrix;
use crate::measure::{Reference, frequencies};
use crate::network::Network;
use crate::pipeline::treat;
use crate::recipe::{BltMethod, Head, Loaded, RowCoding, Weighting};

/// Shares of the latent width that a separate head may get; the embedding gets the rest.
const HEAD_SHARES: [f64; 3] = [0.25, 0.375, 0.5];
/// Windows that shares and powers are compared on.
const COMPARED: usize = 8;

/// Changes the embedding, and the head if it is another matrix or becomes one. `network` gets both.
pub(super) fn shrink(
    loaded: &Loaded,
    teacher: &Network,
    network: &mut Network,
    texts: &Texts,
    settings: &Settings,
    advance: &dyn Fn(usize) -> Result<()>,
) -> Result<BTreeMap<String, Form>> {
    let method = loaded.recipe.branches.blt.method;
    if method == BltMethod::Factors {
        return factor(loaded, teacher, network, texts, settings, advance);
    }
    let globals = &teacher.parts().globals;
    let mut forms = BTreeMap::new();
    for name in [Some(&globals.embedding), globals.head.as_ref()].into_iter().flatten() {
        let form = match settings.table_treatment() {
            _ if settings.is_protected(name) => None,
            Some(treatment) if method == BltMethod::Layers => {
                let inputs = table_inputs(teacher, name, texts)?;
                treat(&teacher.added(name, teacher.wide(name)?)?, &inputs, &treatment)?
            }
            _ if method == BltMethod::Base => Some(Form::Zero),
            _ => None,
        };
        let Some(form) = form else { continue };
        let (form, [rows, width]) = (teacher.on_base(name, form)?, teacher.shape(name)?);
        network.replace(name, [rows, width], &form.decode(rows, width))?;
        forms.insert(name.clone(), form);
    }
    Ok(forms)
}

/// Factors them.
fn factor(
    loaded: &Loaded,
    teacher: &Network,
    network: &mut Network,
    texts: &Texts,
    settings: &Settings,
    advance: &dyn Fn(usize) -> Result<()>,
) -> Result<BTreeMap<String, Form>> {
    let branch = &loaded.recipe.branches.blt;
    let parts = teacher.parts();
    let name = parts.globals.embedding.as_str();
    let [rows, width] = teacher.shape(name)?;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share of the width")]
    let reduced = |share: f64| ((1.0 - share) * width as f64).round() as usize;
    let rank = branch.latent_dim.or(branch.embedding_reduction.map(reduced)).unwrap_or(width / 2);
    let most = low_rank::largest_rank(rows, width);
    if !(1..=most).contains(&rank) {
        let what = format!("{rank} numbers for each row of {rows}x{width}");
        let hint = Some(format!("1 to {most} take less than the embedding"));
        return Err(loaded.error("branches.blt.latent_dim", what, hint).into());
    }
    let shares = match branch.weighting {
        Weighting::Frequency => frequencies(&texts.seen, rows, branch.smoothing),
        Weighting::None => vec![1.0; rows],
    };
    let is_tied = parts.globals.head.is_none();
    if teacher.base().is_some() && is_tied && branch.head != Head::Tied {
        let what = format!("{} gives a head of its own, and that of the base is tied", branch.head.name());
        return Err(loaded.error("branches.blt.head", what, Some("use tied".to_owned())).into());
    }
    let table = teacher.added(name, teacher.wide(name)?)?;
    let of_table = |power: f64| {
        let weights: Vec<f64> = shares.iter().map(|share| libm::pow(*share, power)).collect();
        Directions::new(&table, &weights, None)
    };
    let power = branch.powers.first().copied().unwrap_or(1.0);
    let powers = if branch.weighting == Weighting::Frequency { &branch.powers[..] } else { &[0.0] };
    let reference = Reference::new(teacher.clone(), texts.divided(COMPARED).compared, advance)?;
    let make = |directions: &Directions, of: &Matrix, rank: usize| -> Result<Form> {
        let [left, right] = directions.factors(of, rank);
        coded(&left, &right, settings)
    };
    let mut forms = BTreeMap::new();
    let mut put = |network: &mut Network, name: &str, form: Form| -> Result<()> {
        let form = teacher.on_base(name, form)?;
        network.replace(name, [rows, width], &form.decode(rows, width))?;
        forms.insert(name.to_owned(), form);
        Ok(())
    };
    let head = parts.globals.head.as_deref().unwrap_or(HEAD);
    match branch.head {
        Head::SharedTable => {
            let what = "a shared table is not built yet".to_owned();
            return Err(loaded
                .error("branches.blt.head", what, Some("use tied or separate".to_owned()))
                .into());
        }
        Head::Tied => {
            let mut best: Option<(f64, Form)> = None;
            for power in powers {
                let form = make(&of_table(*power), &table, rank)?;
                let mut tried = network.clone();
                put(&mut tried, name, form.clone())?;
                let kl = reference.compare(&tried, advance)?.kl();
                if best.as_ref().is_none_or(|(least, _)| kl < *least) {
                    best = Some((kl, form));
                }
            }
            if let Some((_, form)) = best {
                put(network, name, form)?;
            }
        }
        Head::Full => {
            if is_tied {
                // The teacher's rows stay as the head.
                put(network, HEAD, Form::Dense(Dense::new(FloatType::BF16, table.to_f32())))?;
            }
            put(network, name, make(&of_table(power), &table, rank)?)?;
        }
        Head::Separate => {
            let of_head = if is_tied { table.clone() } else { teacher.added(head, teacher.wide(head)?)? };
            let inputs = head_inputs(teacher, texts)?;
            let directions = Directions::new(&of_head, &shares, Some(&inputs));
            let of_table = of_table(power);
            let mut best: Option<(f64, [Form; 2])> = None;
            for share in HEAD_SHARES {
                #[expect(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "a part of the rank"
                )]
                let of_rank = ((rank as f64 * share).round() as usize).max(1);
                let pair = [
                    make(&of_table, &table, rank.saturating_sub(of_rank).max(1))?,
                    make(&directions, &of_head, of_rank)?,
                ];
                let mut tried = network.clone();
                put(&mut tried, name, pair[0].clone())?;
                put(&mut tried, head, pair[1].clone())?;
                let kl = reference.compare(&tried, advance)?.kl();
                if best.as_ref().is_none_or(|(least, _)| kl < *least) {
                    best = Some((kl, pair));
                }
            }
            if let Some((_, [of_table, of_head])) = best {
                put(network, name, of_table)?;
                put(network, head, of_head)?;
            }
        }
    }
    Ok(forms)
}

/// An embedding or a head, ready to become any candidate.
pub(super) struct Table {
    table: Matrix,
    /// What errors of its rows count.
    weights: Vec<f64>,
    directions: Directions,
    inputs: Statistics,
}

/// Bits of each number of a projection, of which there are few.
const PROJECTION_RATE: f64 = 5.0;

impl Table {
    pub(super) fn new(loaded: &Loaded, teacher: &Network, name: &str, texts: &Texts) -> Result<Self> {
        let branch = &loaded.recipe.branches.blt;
        let table = teacher.wide(name)?;
        let is_head = name == teacher.head();
        let inputs = table_inputs(teacher, name, texts)?;
        let shares = frequencies(&texts.seen, table.rows(), branch.smoothing);
        let weights = match branch.rows {
            RowCoding::None => vec![1.0; table.rows()],
            RowCoding::Waterfill => row_weights(&shares),
        };
        // A table that is the embedding too must serve rows as they are read.
        let is_only_head = is_head && name != teacher.parts().globals.embedding;
        let directions = Directions::new(&table, &shares, is_only_head.then_some(&inputs));
        Ok(Self { table, weights, directions, inputs })
    }

    /// Its form as a candidate, in which frequent tokens get more bits.
    pub(super) fn form(&self, candidate: Candidate) -> Result<Option<Form>> {
        Ok(Some(match candidate {
            Candidate::Kept => return Ok(None),
            Candidate::Zero => Form::Zero,
            Candidate::Codes { rate } => self.codes(&self.table, &self.inputs, rate)?,
            Candidate::LowRank { rank, rate, .. } => {
                let [left, right] = self.directions.factors(&self.table, rank);
                let unknown = |matrix: &Matrix| Statistics::unknown(matrix.cols());
                let right = quantise::quantise(
                    &right,
                    &unknown(&right),
                    &quantise::Settings::coded(PROJECTION_RATE),
                )?;
                let left = self.codes(&left, &unknown(&left), rate)?;
                Form::LowRank { left: Box::new(left), right: Box::new(right), rank }
            }
            Candidate::Sparse { .. } => {
                return Err(Error::InvalidArgument("embeddings do not become sparse".to_owned()));
            }
        }))
    }

    fn codes(&self, rows: &Matrix, inputs: &Statistics, rate: f64) -> Result<Form> {
        let weighted = rows.scaled_rows(self.weights.iter().copied());
        Ok(match quantise::quantise(&weighted, inputs, &quantise::Settings::coded(rate))? {
            Form::Quantised(codes) => Form::Quantised(codes.with_rows_divided(&self.weights)),
            form => form,
        })
    }
}

/// Errors of a row count by how often its token occurs, so that its step is one over the root of
/// that.
fn row_weights(shares: &[f64]) -> Vec<f64> {
    let logs: Vec<f64> = shares.iter().map(|share| 0.5 * libm::log(*share)).collect();
    let mean = logs.iter().sum::<f64>() / logs.len().max(1) as f64;
    logs.iter().map(|log| libm::exp(log - mean).clamp(1.0 / 64.0, 64.0)).collect()
}

/// What the head reads. Nothing is known of what an embedding alone reads.
fn table_inputs(teacher: &Network, name: &str, texts: &Texts) -> Result<Statistics> {
    let [_, width] = teacher.shape(name)?;
    if name == teacher.head() { head_inputs(teacher, texts) } else { Ok(Statistics::unknown(width)) }
}

/// What the head reads.
fn head_inputs(teacher: &Network, texts: &Texts) -> Result<Statistics> {
    let sequences: Vec<&[u32]> = texts.calibrate.iter().map(Vec::as_slice).collect();
    Statistics::of(&teacher.hidden(&sequences)?, teacher.parts().config.width)
}

/// Factors as BF16, or as codes if the recipe quantises.
fn coded(left: &Matrix, right: &Matrix, settings: &Settings) -> Result<Form> {
    let Some(quantised) = &settings.quantise else {
        return Ok(low_rank::form(&[left.clone(), right.clone()], FloatType::BF16));
    };
    // Nothing is known of the inputs of single tokens: all numbers of a row count alike.
    let unknown = |matrix: &Matrix| Statistics::unknown(matrix.cols());
    let code = |matrix: &Matrix| quantise::quantise(matrix, &unknown(matrix), quantised);
    Ok(Form::LowRank { left: Box::new(code(left)?), right: Box::new(code(right)?), rank: left.cols() })
}
