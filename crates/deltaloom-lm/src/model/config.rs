//! A model by its `config.json`, and its tensors by name. It reads no weights.

use std::collections::{BTreeMap, BTreeSet};

use super::positions::{Extension, PositionTable};
use crate::layer::family::Described;
use crate::layer::{
    AttentionPlan, LayerConfig, LayerNames, MAX_POSITIONS, Norm, Positions, Reach, check_shape,
};
use crate::tenancy::GlobalNames;
use deltaloom::{Error, Missing, Result};

/// What a model computes.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
#[non_exhaustive]
pub struct ModelConfig {
    /// The name of its family.
    pub model_type: String,
    /// Its layers, first to last.
    pub layers: Vec<LayerConfig>,
    /// Number of elements of a token.
    pub width: usize,
    /// The factor of embeddings, if there is one.
    pub embedding_scale: Option<f32>,
    /// Number of tokens that it knows.
    pub vocabulary: usize,
    /// The norm before the head.
    pub final_norm: Norm,
    /// Whether the embedding is also the head.
    pub has_tied_head: bool,
    /// The table with a row for each position, which is added to the embedding of a token there.
    pub position_table: Option<PositionTable>,
    /// Number of positions that it was trained for, if that is said.
    pub max_positions: Option<usize>,
}

/// The tensors of a model.
pub(super) struct ModelNames {
    pub(super) layers: Vec<LayerNames>,
    pub(super) globals: GlobalNames,
}

impl ModelConfig {
    /// Reads the text of a Hugging Face `config.json`, of LLaMA, Mistral, Qwen2, Qwen3, Gemma 3,
    /// GPT-2 or OPT.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] names a setting that is missing, makes no sense or is not
    /// supported.
    pub fn parse(text: &str) -> Result<Self> {
        let described = Described::parse(text)?;
        let sizes = described.sizes()?;
        let layer = |number| described.layer(number, sizes.width, sizes.hidden_width);
        let max_positions = described.settings.max_position_embeddings;
        let globals = described.architecture.globals;
        let table = || match max_positions {
            Some(positions @ 1..=MAX_POSITIONS) => Ok(PositionTable::new(positions, globals.first_position)),
            _ => Err(Error::InvalidArgument(format!(
                "config.json: a table of positions needs max_position_embeddings from 1 to {MAX_POSITIONS}"
            ))),
        };
        Ok(Self {
            model_type: described.architecture.model_type.to_owned(),
            layers: (0..sizes.layers).map(layer).collect::<Result<_>>()?,
            width: sizes.width,
            embedding_scale: described.embedding_scale(sizes.width),
            vocabulary: sizes.vocabulary,
            final_norm: described.norm(),
            has_tied_head: described.has_tied_head(),
            position_table: globals.positions.map(|_| table()).transpose()?,
            max_positions,
        })
    }

    /// The attention of each layer, first to last.
    pub fn attention(&self) -> impl ExactSizeIterator<Item = &AttentionPlan> {
        self.layers.iter().map(|layer| &layer.attention)
    }

    /// Replaces the attention of all layers.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for another number of plans than layers, and for a plan that such
    /// a layer cannot have: encoders' attention, norms with vectors where it has none or without
    /// where it has them, rotary positions beside a table of positions, or positions that are to
    /// stay within the trained length and do not.
    pub fn with_attention(mut self, plans: Vec<AttentionPlan>) -> Result<Self> {
        let wrong = |what: String| Err(Error::InvalidArgument(what));
        if plans.len() != self.layers.len() {
            return wrong(format!("{} plans of attention for {} layers", plans.len(), self.layers.len()));
        }
        for (number, (layer, plan)) in self.layers.iter_mut().zip(plans).enumerate() {
            if plan.reach == Reach::Full {
                return wrong(format!("layer {number}: tokens of a decoder cannot see those behind them"));
            }
            if self.position_table.is_some() && plan.positions != Positions::None {
                return wrong(format!("layer {number}: the model has a table of positions, not rotary ones"));
            }
            let had_norms = layer.has_head_norms();
            layer.attention = plan;
            if layer.has_head_norms() != had_norms {
                let what = if had_norms { "has" } else { "has no" };
                return wrong(format!("layer {number} {what} vectors for norms of queries and keys"));
            }
            layer.check()?;
            if let Some(trained) = self.max_positions {
                layer.attention.check_trained(trained)?;
            }
        }
        Ok(self)
    }

    /// Replaces how the table of positions goes on behind its last row.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a model without such a table, and as
    /// [`PositionTable::with_extension`].
    pub fn with_extension(mut self, extension: Option<Extension>) -> Result<Self> {
        self.position_table = match (self.position_table, extension) {
            (Some(table), extension) => Some(table.with_extension(extension)?),
            (None, None) => None,
            (None, Some(_)) => {
                let what = "the model has no table of positions that could be extended".to_owned();
                return Err(Error::InvalidArgument(what));
            }
        };
        Ok(self)
    }

    /// Number of tokens that a sequence may have, by its settings: where a table of positions ends,
    /// else the trained length. `None` if that is not said.
    #[must_use]
    pub fn longest(&self) -> Option<usize> {
        self.position_table.map(|table| table.end()).or(self.max_positions)
    }

    /// Number of positions that the table has, with those that are computed; no end without a
    /// table.
    #[must_use]
    pub fn table_end(&self) -> usize {
        self.position_table.map_or(usize::MAX, |table| table.end())
    }

    /// Finds all tensors among these with their shapes.
    ///
    /// # Errors
    /// [`Error::NotFound`] for a missing one; [`Error::InvalidArgument`] for one of another shape,
    /// or that such a model does not have.
    pub(super) fn names(&self, text: &str, tensors: &BTreeMap<&str, &[u64]>) -> Result<ModelNames> {
        let architecture = Described::parse(text)?.architecture;
        let (convention, known) = (&architecture.names, architecture.globals);
        let prefix = |number: usize| format!("{}{number}.", known.layers);
        let layer = |(number, config)| LayerNames::find(convention, &prefix(number), tensors, config);
        let layers = self.layers.iter().enumerate().map(layer).collect::<Result<_>>()?;
        let global = |name: &str, shape: &[usize]| -> Result<String> {
            let missing = || Error::not_found(Missing::Tensor, format!("tensor {name:?} of the model"));
            check_shape(name, tensors.get(name).copied().ok_or_else(missing)?, shape)?;
            Ok(name.to_owned())
        };
        let rows = [self.vocabulary, self.width];
        let embedding = global(known.embedding, &rows)?;
        let table = [self.position_table.map_or(0, |table| table.rows()), self.width];
        let positions = known.positions.map(|name| global(name, &table)).transpose()?;
        let final_norm = global(known.final_norm, &rows[1..])?;
        let final_norm_bias = known.final_norm_bias.map(|name| global(name, &rows[1..])).transpose()?;
        let head = (!self.has_tied_head).then(|| global(known.head, &rows)).transpose()?;
        // Tensors of layers below the last were checked with their layer.
        let prefixes: BTreeSet<String> = (0..self.layers.len()).map(prefix).collect();
        let is_of_layer = |name: &str| {
            let end = name.strip_prefix(known.layers).and_then(|rest| rest.find('.'));
            end.is_some_and(|end| prefixes.contains(&name[..=known.layers.len() + end]))
        };
        let mut globals = vec![known.embedding, known.final_norm, known.head];
        globals.extend(known.positions.into_iter().chain(known.final_norm_bias));
        if let Some(name) = tensors.keys().find(|name| !globals.contains(*name) && !is_of_layer(name)) {
            return Err(Error::InvalidArgument(format!(
                "tensor {name:?} is not part of a model of {} with {} layers, so it is unclear what this \
                 model computes",
                convention.kind,
                self.layers.len()
            )));
        }
        let globals = GlobalNames { embedding, positions, final_norm, final_norm_bias, head };
        Ok(ModelNames { layers, globals })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::{By, PositionMap, Table};

    const TEXT: &str = r#"{"model_type": "llama", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 100, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "hidden_act": "silu", "tie_word_embeddings": true}"#;

    fn changed(from: &str, to: &str) -> String {
        assert!(TEXT.contains(from), "{from}");
        TEXT.replace(from, to)
    }

    fn positions(config: &ModelConfig) -> Positions {
        config.layers[0].attention.positions.clone()
    }

    #[test]
    fn settings_are_read_in_both_styles() {
        let config = ModelConfig::parse(TEXT).unwrap();
        assert_eq!((config.layers.len(), config.width, config.vocabulary), (2, 64, 100));
        assert!(config.has_tied_head && config.max_positions.is_none());
        assert_eq!(config.layers[1].head_size, 16);
        let theta = "\"rope_theta\": 10000.0";
        let linear = Positions::rotary(1e4, Table::Linear { factor: 2.0 });
        for style in [
            r#""rope_theta": 10000.0, "rope_scaling": {"type": "linear", "factor": 2.0}"#,
            r#""rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}"#,
        ] {
            assert_eq!(positions(&ModelConfig::parse(&changed(theta, style)).unwrap()), linear);
        }
        let llama3 = r#""rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", "factor": 8.0,
            "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}"#;
        let table = Table::Llama3 { factor: 8.0, low: 1.0, high: 4.0, trained: 8192 };
        let found = ModelConfig::parse(&changed(theta, llama3)).unwrap();
        assert_eq!(positions(&found), Positions::rotary(5e5, table));
        let none = changed(theta, r#""rope_theta": 1e6, "rope_scaling": null"#);
        let plain = Positions::rotary(1e6, Table::Default);
        assert_eq!(positions(&ModelConfig::parse(&none).unwrap()), plain);
    }

    /// With 512 positions.
    fn scaled(settings: &str) -> Result<ModelConfig> {
        let rope = "\"rope_theta\": 10000.0";
        ModelConfig::parse(&changed(rope, &format!("{rope}, \"max_position_embeddings\": 512, {settings}")))
    }

    #[test]
    fn every_type_of_positions_is_read() {
        let ones = serde_json::to_string(&[1.0; 8]).unwrap();
        let longrope = format!("\"short_factor\": {ones}, \"long_factor\": {ones}");
        let original = "\"original_max_position_embeddings\": 256";
        let yarn = |beta_fast, factor, truncate| Table::Yarn {
            factor,
            trained: 256,
            beta_fast,
            beta_slow: 1.0,
            attention_factor: None,
            mscale: None,
            mscale_all_dim: None,
            truncate,
        };
        let ones = vec![1.0; 8];
        let long = Table::Longrope {
            short: ones.clone(),
            long: ones,
            trained: 256,
            factor: 2.0,
            attention_factor: None,
            by: By::Query,
        };
        for (kind, settings, table) in [
            ("default", "\"factor\": 9", Table::Default),
            ("dynamic", "\"factor\": 2", Table::Dynamic { factor: 2.0, trained: 512, by: By::Query }),
            ("yarn", original, yarn(32.0, 2.0, true)),
            (
                "yarn",
                &format!("{original}, \"factor\": 4, \"beta_fast\": 16, \"mscale\": 0, \"truncate\": false"),
                yarn(16.0, 4.0, false),
            ),
            ("longrope", &format!("{original}, {longrope}"), long.clone()),
            ("su", &format!("{original}, {longrope}"), long),
            ("proportional", "\"partial_rotary_factor\": 0.25", Table::Proportional { share: 0.25 }),
        ] {
            for style in [
                format!("\"rope_scaling\": {{\"rope_type\": \"{kind}\", {settings}}}"),
                format!("\"rope_scaling\": {{\"type\": \"{kind}\", {settings}}}"),
                format!("\"rope_parameters\": {{\"rope_type\": \"{kind}\", {settings}}}"),
            ] {
                let found = positions(&scaled(&style).unwrap());
                assert_eq!(found, Positions::rotary(1e4, table.clone()), "{style}");
            }
        }
    }

    #[test]
    fn impossible_positions_are_refused_before_weights_are_read() {
        let many = format!("[{}1]", "1,".repeat(100_000));
        let longrope = |list: &str| {
            format!(
                "\"type\": \"longrope\", \"factor\": 2, \"short_factor\": {list}, \"long_factor\": {list}"
            )
        };
        let llama3 = "\"type\": \"llama3\", \"low_freq_factor\": 4, \"high_freq_factor\": 1";
        for (settings, words) in [
            ("\"type\": \"linear\", \"factor\": 0.5", "factor is 0.5"),
            ("\"type\": \"linear\", \"factor\": 1e30", "must be from 1"),
            ("\"type\": \"linear\", \"factor\": \"2\"", "invalid type"),
            ("\"type\": \"dynamic\", \"factor\": 0", "factor is 0"),
            ("\"type\": \"yarn\", \"factor\": 2, \"beta_fast\": 0.5", "beta_fast"),
            (
                "\"type\": \"yarn\", \"factor\": 2, \"original_max_position_embeddings\": 0",
                "trained length is 0",
            ),
            (
                "\"type\": \"yarn\", \"factor\": 2, \"original_max_position_embeddings\": 513",
                "above max_position_embeddings",
            ),
            (&format!("{llama3}, \"factor\": 2"), "high factor"),
            (&longrope("[1, 1]"), "a head has 8 pairs"),
            (&longrope("[1, 1, 1, 1, 1, 1, 1, 0]"), "must be finite and positive"),
            (&longrope("[1, 1, 1, 1, 1, 1, 1, -1]"), "must be finite and positive"),
            (&longrope(&many), "at most 4096"),
            ("\"type\": \"longrope\", \"factor\": 2", "short_factor of rotary positions is missing"),
            ("\"type\": \"proportional\"", "partial_rotary_factor of rotary positions is missing"),
            ("\"type\": \"proportional\", \"partial_rotary_factor\": 1.5", "share of 1.5"),
            ("\"type\": \"proportional\", \"partial_rotary_factor\": 0.3", "share of 0.3"),
            ("\"type\": \"proportional\", \"partial_rotary_factor\": 0.5, \"factor\": 2", "a factor of"),
            ("\"type\": \"default\", \"rope_theta\": 5e5", "rope_theta is"),
        ] {
            for key in ["rope_scaling", "rope_parameters"] {
                let error = scaled(&format!("\"{key}\": {{{settings}}}")).unwrap_err().to_string();
                assert!(error.contains(words), "{error}, not {words}");
            }
        }
        let both = |factor| {
            scaled(&format!(
                "\"rope_scaling\": {{\"type\": \"linear\", \"factor\": 2}},
                 \"rope_parameters\": {{\"rope_type\": \"linear\", \"factor\": {factor}}}"
            ))
        };
        assert!(both(2).is_ok() && both(3).unwrap_err().to_string().contains("different things"));
    }

    #[test]
    fn plans_must_fit_the_model() {
        let config = scaled("\"use_cache\": true").unwrap();
        let plain = AttentionPlan::new(Reach::Causal);
        let of_map =
            |map| plain.clone().with_positions(Positions::Rotary { theta: 1e4, table: Table::Default, map });
        let of_weights = crate::layer::QkNorm::of_weights(Norm::RmsNorm { epsilon: 1e-6 });
        let changed = |plan: &AttentionPlan| config.clone().with_attention(vec![plan.clone(); 2]);
        let dual = PositionMap::DualChunk { chunk: 448, local: 64, saturate: None };
        for good in [plain.clone(), of_map(PositionMap::Clipped { at: 511 }), of_map(dual)] {
            assert!(changed(&good).unwrap().attention().all(|plan| *plan == good));
        }
        for (plan, words) in [
            (AttentionPlan::new(Reach::Full), "cannot see those behind"),
            (AttentionPlan::new(Reach::Chunk { tokens: 0 }), "chunks of 0 tokens"),
            (plain.clone().with_qk_norm(Some(of_weights)), "has no vectors"),
            (of_map(PositionMap::Clipped { at: 512 }), "was trained for 512"),
            (of_map(PositionMap::Grouped { group: 4, neighbours: 512 }), "was trained for 512"),
        ] {
            let error = changed(&plan).unwrap_err().to_string();
            assert!(error.contains(words), "{error}, not {words}");
        }
        assert!(
            config
                .clone()
                .with_attention(vec![plain.clone()])
                .unwrap_err()
                .to_string()
                .contains("for 2 layers")
        );
        let text = r#"{"model_type": "gpt2", "n_embd": 32, "n_layer": 1, "n_head": 2, "vocab_size": 9,
            "n_positions": 64, "activation_function": "gelu_new"}"#;
        let gpt2 = ModelConfig::parse(text).unwrap();
        let error = gpt2.with_attention(vec![of_map(PositionMap::Identity)]).unwrap_err().to_string();
        assert!(error.contains("a table of positions"), "{error}");
    }

    #[test]
    fn windows_are_those_of_transformers() {
        let reaches = |kind: &str, settings: &str| -> Vec<Reach> {
            let text = changed("\"llama\"", &format!("\"{kind}\", {settings}"));
            ModelConfig::parse(&text).unwrap().layers.iter().map(|layer| layer.attention.reach).collect()
        };
        let window = Reach::Window { tokens: 9, sinks: 0 };
        assert_eq!(reaches("mistral", "\"sliding_window\": 9"), [window; 2]);
        assert_eq!(reaches("mistral", "\"sliding_window\": null"), [Reach::Causal; 2]);
        assert_eq!(reaches("llama", "\"sliding_window\": 9"), [Reach::Causal; 2]);
        let on = "\"sliding_window\": 9, \"use_sliding_window\": true";
        assert_eq!(reaches("qwen2", "\"sliding_window\": 9"), [Reach::Causal; 2]);
        assert_eq!(reaches("qwen2", on), [Reach::Causal; 2]);
        assert_eq!(reaches("qwen2", &format!("{on}, \"max_window_layers\": 1")), [Reach::Causal, window]);
        let types = format!("{on}, \"layer_types\": [\"sliding_attention\", \"full_attention\"]");
        assert_eq!(reaches("qwen3", &types), [window, Reach::Causal]);
    }

    #[test]
    fn bad_settings_are_refused_by_name() {
        let huge = "99999999999999999999999999";
        let sizes = [
            "\"hidden_size\": 64",
            "\"intermediate_size\": 96",
            "\"num_hidden_layers\": 2",
            "\"num_attention_heads\": 4",
            "\"num_key_value_heads\": 2",
            "\"vocab_size\": 100",
        ];
        for size in sizes {
            let name = size.split('"').nth(1).unwrap();
            for bad in ["0", "-1", "9007199254740993", huge, "\"2\"", "1.5", "[]"] {
                let text = changed(size, &format!("\"{name}\": {bad}"));
                assert!(matches!(ModelConfig::parse(&text), Err(Error::InvalidArgument(_))), "{name} {bad}");
            }
            if name != "num_key_value_heads" {
                let text = changed(size, &format!("\"other_{name}\": 1"));
                let error = ModelConfig::parse(&text).unwrap_err().to_string();
                assert!(error.contains(name), "{error}");
            }
        }
        let rope = "\"rope_theta\": 10000.0";
        for (from, to, words) in [
            ("\"llama\"", "\"gemma3\"", "model_type \"gemma3\""),
            ("\"llama\"", "\"gemma3_text\"", "hidden_act \"silu\""),
            ("\"llama\"", "\"mixtral\"", "a mixture of experts"),
            ("\"llama\"", "\"qwen3_moe\"", "a mixture of experts"),
            ("\"llama\"", "\"deepseek_v3\"", "multi-head latent attention"),
            ("\"llama\"", "\"llama\", \"num_local_experts\": 8", "num_local_experts"),
            ("\"llama\"", "\"llama\", \"kv_lora_rank\": 8", "multi-head latent attention"),
            ("\"llama\"", "\"llama\", \"quantization_config\": {}", "quantised weights"),
            ("\"silu\"", "\"gelu\"", "hidden_act \"gelu\""),
            ("\"num_key_value_heads\": 2", "\"num_key_value_heads\": 3", "cannot share 3"),
            ("\"num_attention_heads\": 4", "\"num_attention_heads\": 6", "divided into 6 heads"),
            ("\"num_attention_heads\": 4", "\"num_attention_heads\": 4, \"head_dim\": 5", "even head size"),
            ("\"rms_norm_eps\": 1e-5", "\"rms_norm_eps\": -1", "epsilon"),
            (rope, "\"rope_theta\": 0", "theta"),
            (rope, "\"rope_scaling\": {\"type\": \"axial\", \"factor\": 2}", "rope_type \"axial\""),
            (rope, "\"rope_scaling\": {\"rope_type\": \"linear\"}", "factor of rotary positions is missing"),
            (rope, "\"rope_scaling\": {\"rope_type\": \"linear\", \"factor\": -2}", "must be from 1"),
            (rope, "\"rope_parameters\": {\"full_attention\": {}}", "differ between layers"),
            (rope, "\"partial_rotary_factor\": 0.5", "partial_rotary_factor"),
        ] {
            let error = ModelConfig::parse(&changed(from, to)).unwrap_err().to_string();
            assert!(error.contains(words), "{error}, not {words}");
        }
        let window = changed("\"llama\"", "\"mistral\", \"sliding_window\": 0");
        assert!(ModelConfig::parse(&window).unwrap_err().to_string().contains("window of 0"));
        let types = changed("\"llama\"", "\"qwen3\", \"layer_types\": [\"linear_attention\"]");
        assert!(ModelConfig::parse(&types).unwrap_err().to_string().contains("linear_attention"));
        for text in ["", "[]", "{}", "{\"model_type\": 3}"] {
            assert!(matches!(ModelConfig::parse(text), Err(Error::InvalidArgument(_))), "{text}");
        }
    }
}
