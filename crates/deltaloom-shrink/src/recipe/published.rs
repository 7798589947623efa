//! The spelling of the published toolkit, and its rules for high ratios.

use super::model::{Recipe, Switch};
use deltaloom_lm::yaml::{Fault, Node, Value};

/// What a key of the published toolkit means here.
enum Meaning {
    /// The same as a field.
    Is(&'static str),
    /// A word for a field: one if it is true, another if it is false.
    Chooses(&'static str, &'static str, &'static str),
    /// Nothing, and why or what to use instead.
    Nothing(&'static str),
}
use Meaning::{Chooses, Is, Nothing};

/// Sections that are elsewhere here.
const SECTIONS: &[(&str, &str)] = &[
    ("lra", "branches.lra"),
    ("kv", "branches.kv"),
    ("blt", "branches.blt"),
    ("sparsity", "branches.sparsity"),
    ("branches.embedding", "branches.blt"),
];

/// Sections of which only the keys in [`KEYS`] have a meaning here.
const FOREIGN: &[&str] = &["distillation", "finetune", "evaluation", "storage"];

const KEYS: &[(&str, Meaning)] = &[
    ("targets.max_rank_fraction", Nothing("branches.lra.guard.max_share bounds ranks")),
    ("lra.enable_tensor_lra", Is("branches.lra.enabled")),
    ("lra.enable_structural", Chooses("branches.lra.residual", "drop", "keep")),
    ("lra.expert_limit", Nothing("experts get ranks as other matrices do")),
    ("kv.student_hidden", Nothing("the width of the student is that of the teacher")),
    ("kv.activation_matching_weight", Nothing("training is not built yet")),
    ("blt.multimodal", Nothing("there is one embedding")),
    ("sparsity.enable_outlier_weighting", Chooses("branches.sparsity.allocation", "owl", "planner")),
    ("sparsity.bregman_iterations", Nothing("sparsegpt needs no iterations")),
    ("logging.log_dir", Nothing("logs are in output.dir")),
    ("logging.enable_wandb", Nothing("history.jsonl can be uploaded later")),
    ("logging.wandb_project", Nothing("history.jsonl can be uploaded later")),
    ("distillation.kl_weight", Is("recover.distil.kl")),
    ("distillation.activation_weight", Is("recover.distil.hidden")),
    ("distillation.token_budget", Is("recover.distil.tokens")),
    ("distillation.hierarchical_lora", Nothing("recover.lora.levels comes with training")),
    ("finetune.learning_rate", Is("recover.optimizer.lr")),
    ("finetune.max_tokens", Nothing("training is not built yet")),
    ("evaluation.ablation_branches", Is("evaluate.ablations")),
];

/// Turns the published toolkit's spelling into ours. Returns warnings.
pub(super) fn translate(root: &mut Node) -> Result<Vec<Fault>, Fault> {
    let Value::Map(entries) = &root.value else {
        return Err(Fault::new("", format!("found {}, wanted a section with keys", root.value.shown())));
    };
    let spelled = entries.iter().find(|(key, _)| SECTIONS.iter().any(|(section, _)| section == key));
    let spelled = spelled.map(|(key, node)| (key.clone(), node.line));
    let known = ["mode", "targets", "logging"];
    let foreign = |key: &str| !known.contains(&key) && !FOREIGN.contains(&key);
    let unversioned =
        entries.iter().all(|(key, _)| !foreign(key) || SECTIONS.iter().any(|(name, _)| name == key));

    for section in ["targets", "logging", "lra", "kv", "blt", "sparsity"].iter().chain(FOREIGN) {
        let Some(Node { value: Value::Map(entries), .. }) = root.get(section) else { continue };
        let keys: Vec<String> = entries.iter().map(|(key, _)| format!("{section}.{key}")).collect();
        for key in keys {
            let listed = KEYS.iter().find(|(name, _)| *name == key).map(|(_, meaning)| meaning);
            let unlisted = FOREIGN.contains(section).then_some(&Nothing("leave it out"));
            if let Some(meaning) = listed.or(unlisted) {
                translate_key(root, &key, meaning)?;
            }
        }
        if FOREIGN.contains(section) {
            root.take(section);
        }
    }
    for (theirs, ours) in SECTIONS {
        if let Some(node) = root.take(theirs) {
            root.put(ours, Node::new(node.line, theirs, node.value))?;
        }
    }

    let mut warnings = Vec::new();
    let Some((section, line)) = spelled else { return Ok(warnings) };
    if unversioned && root.get("version").is_none() {
        root.put("version", Node::new(0, "version", Value::Whole(1)))?;
        warnings.push(Fault::new("", "missing, taken as 1").at(1, "version"));
    }
    if root.get("planner.mode").is_none() {
        let rules = Value::Text("published-rules".to_owned());
        root.put("planner.mode", Node::new(0, "planner.mode", rules))?;
        let what = "the spelling of the published toolkit: planner.mode is published-rules";
        warnings.push(Fault::new("", what).at(line, &section));
    }
    Ok(warnings)
}

fn translate_key(root: &mut Node, key: &str, meaning: &Meaning) -> Result<(), Fault> {
    let Some(node) = root.take(key) else { return Ok(()) };
    match (meaning, node.value) {
        (Is(ours), value) => root.put(ours, Node::new(node.line, key, value)),
        (Chooses(ours, on, off), Value::Flag(flag)) => {
            let word = if flag { on } else { off };
            root.put(ours, Node::new(node.line, key, Value::Text((*word).to_owned())))
        }
        (Chooses(..), value) => {
            let what = format!("found {}, wanted true or false", value.shown());
            Err(Fault::new("", what).at(node.line, key))
        }
        // What switches nothing on may stay.
        (Nothing(_), Value::Nothing | Value::Flag(false)) => Ok(()),
        (Nothing(instead), _) => Err(Fault::new("", "has no effect here").hint(*instead).at(node.line, key)),
    }
}

/// The published toolkit's rules for a compression ratio of `ratio`, with a note for each change.
/// Above 10, low rank is on and what it leaves over is dropped. Above 50, `lra.rank`,
/// `kv.cache_tokens` and `blt.latent_dim` are halved, and `sparsity.target_sparsity` grows by 0.05,
/// up to 0.999.
#[must_use]
pub fn published_rules(mut recipe: Recipe, ratio: f64) -> (Recipe, Vec<String>) {
    let mut notes = Vec::new();
    let branches = &mut recipe.branches;
    if ratio > 10.0 && branches.lra.enabled != Switch::On {
        branches.lra.enabled = Switch::On;
        branches.lra.residual = super::Residual::Drop;
        notes.push(format!("ratio {ratio} is above 10: low rank is on"));
    }
    if ratio > 50.0 {
        let multiple = branches.lra.guard.multiple_of;
        let counts = [
            ("lra.rank", &mut branches.lra.rank, multiple),
            ("kv.cache_tokens", &mut branches.kv.cache_tokens, 1),
            ("blt.latent_dim", &mut branches.blt.latent_dim, 1),
        ];
        for (name, count, multiple) in counts {
            if let Some(count) = count {
                let new = halved(*count, multiple);
                notes.push(format!("ratio {ratio} is above 50: {name} {count} becomes {new}"));
                *count = new;
            }
        }
        if let Some(reduction) = &mut branches.blt.embedding_reduction {
            let new = 1.0 - (1.0 - *reduction) / 2.0;
            notes.push(format!(
                "ratio {ratio} is above 50: blt.embedding_reduction {reduction} becomes {new}"
            ));
            *reduction = new;
        }
        if let Some(share) = &mut branches.sparsity.target_sparsity {
            let new = (*share + 0.05).min(0.999);
            notes.push(format!("ratio {ratio} is above 50: sparsity.target_sparsity {share} becomes {new}"));
            *share = new;
        }
    }
    (recipe, notes)
}

/// Half of `count`, at least 1. What was a multiple stays one, if half is not below it.
fn halved(count: usize, multiple: usize) -> usize {
    let half = (count / 2).max(1);
    let keeps = multiple > 1 && count.is_multiple_of(multiple) && half >= multiple;
    if keeps { half - half % multiple } else { half }
}
