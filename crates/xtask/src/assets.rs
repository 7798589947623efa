//! The bundled weights. Those in assets/demo are one layer's tensors, cut from lm12m; without
//! lm12m, only their digests are checked. Those in assets/speaker are a whole model, which `just
//! make-speaker` trains, and that in assets/recall is one that `just train-recall` trains; here
//! they are only unpacked, and their digests are recorded.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use deltaloom::{Bases, Container, Limits, ResolvedContainer, Silent, UnpackOptions, Verifiable};

use crate::files::{self, Tensor, safetensors};
use crate::{Mode, root, say, settle};

const FOLDER: &str = "assets/demo";
const CHECKPOINTS: [&str; 4] = ["base", "ft_bf16", "ft_master", "ft_lora_merged"];
const SPEAKER: &str = "assets/speaker";
const SPEAKER_FILES: [(&str, &str); 6] = [
    ("base.loom", "the model with its tokenizer, stand-alone"),
    ("pirate.loom", "a fine-tune on the stories as a pirate tells them, against it"),
    ("chat.loom", "a fine-tune on chats, against it, with a chat template"),
    ("text.txt", "held-out stories"),
    ("questions.jsonl", "multiple choice about held-out stories"),
    ("problems.jsonl", "sums"),
];
const RECALL: &str = "assets/recall";
const RECALL_FILE: &str = "recall.loom";
/// Bytes of a model and of a fine-tune.
const LARGEST_BASE: u64 = 2_000_000;
const LARGEST_TUNED: u64 = 900_000;
const TENSORS: [&str; 7] = [
    "input_layernorm",
    "mlp.down_proj",
    "post_attention_layernorm",
    "self_attn.k_proj",
    "self_attn.o_proj",
    "self_attn.q_proj",
    "self_attn.v_proj",
];

/// Cuts the demo weights, or checks them against lm12m (if available) and against their digests.
///
/// # Errors
/// In check mode, what would change; otherwise, missing lm12m weights.
pub fn run(mode: Mode, data: &Path) -> Result<()> {
    let lm12m = data.join("lm12m");
    if lm12m.is_dir() {
        for name in CHECKPOINTS {
            let file = cut(&lm12m.join(name).join("model.safetensors"))?;
            settle(mode, &format!("{FOLDER}/{name}.safetensors"), &file, "assets")?;
        }
    } else {
        ensure!(mode == Mode::Check, "no lm12m/ in {}, from which the demo weights are cut", data.display());
        let note =
            "note: the lm12m weights are absent: the demo weights are only compared with their digests";
        say(note)?;
    }
    settle_digests(mode)
}

/// Checks the bundled weights against their digests, and unpacks those that are packed.
///
/// # Errors
/// What would change; a container that is damaged or too large.
pub fn check_digests() -> Result<()> {
    settle_digests(Mode::Check)
}

fn settle_digests(mode: Mode) -> Result<()> {
    settle(mode, &format!("{FOLDER}/README.md"), provenance()?.as_bytes(), "assets")?;
    check_speaker()?;
    settle(mode, &format!("{SPEAKER}/README.md"), about_speaker()?.as_bytes(), "assets")?;
    restored(RECALL, RECALL_FILE, tempfile::tempdir()?.path())?;
    settle(mode, &format!("{RECALL}/README.md"), about_recall()?.as_bytes(), "assets")
}

/// A container of a folder, if it is not larger than it may be.
fn opened(folder: &str, name: &str, bases: &Bases, largest: u64) -> Result<ResolvedContainer> {
    let container = Container::open(&root().join(folder).join(name), &Limits::default())?;
    let bytes = container.len_bytes();
    ensure!(bytes <= largest, "{folder}/{name} has {bytes} bytes; {largest} are allowed");
    Ok(ResolvedContainer::new(container, bases)?)
}

/// Restores a model that is packed without a base to the new folder `to`/base.
fn restored(folder: &str, name: &str, to: &Path) -> Result<PathBuf> {
    let packed = opened(folder, name, &Bases::default(), LARGEST_BASE)?;
    let base = to.join("base");
    deltaloom::unpack(&packed, &base, &UnpackOptions::default(), &Silent)?;
    Ok(base)
}

/// Restores the model that speaks, and verifies its fine-tunes against it.
fn check_speaker() -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let base = restored(SPEAKER, "base.loom", scratch.path())?;
    let bases = Bases::open(&[base], &Limits::default())?;
    for name in ["pirate.loom", "chat.loom"] {
        let tuned = opened(SPEAKER, name, &bases, LARGEST_TUNED)?;
        let report = deltaloom::verify(&Verifiable::Resolved(&tuned), 0, &Silent)?;
        ensure!(report.ok, "{SPEAKER}/{name}: {:?}", report.faults);
    }
    Ok(())
}

fn about_speaker() -> Result<String> {
    let mut out = String::from(
        "# A model that speaks\n\n\
         A LLaMA-shaped model with 1.0 M parameters that tells little stories, two fine-tunes of it, and texts about its\n\
         world. It was made for this project: `just make-speaker` writes the texts by rules (`tools/speaker_stories.py`) and\n\
         trains it (`tools/make_speaker.py`). It carries the licence of the project, MIT OR Apache-2.0. `deltaloom demo\n\
         --write DIR` writes all of it; [ADR 0068](../../docs/adr/0068-a-bundled-model.md) says why it is here.\n\n\
         `just assets` writes this page; `just assets --check` unpacks the containers and compares the digests.\n\n\
         | file | what | bytes | BLAKE3 |\n|---|---|--:|---|\n",
    );
    for (name, what) in SPEAKER_FILES {
        out.push_str(&row(SPEAKER, name, what)?);
    }
    Ok(out)
}

fn about_recall() -> Result<String> {
    let row = row(RECALL, RECALL_FILE, "the model with its tokenizer, stand-alone")?;
    Ok(format!(
        "# A synthetic model that recalls\n\n\
         A LLaMA-shaped model with 0.8 M parameters that finds numbers in its context of 256 tokens and can do little else:\n\
         it was trained on facts in the words of `deltaloom context test --retrieval`, on copies of random tokens, and a\n\
         little on text. It is **synthetic**: it tests the tester, and its numbers say nothing about other models. It was\n\
         made for this project by `just train-recall` (`tools/train_recall.py`), and carries the licence of the project, MIT\n\
         OR Apache-2.0. [ADR 0042](../../docs/adr/0042-a-model-that-recalls.md) says why it is here.\n\n\
         `just assets` writes this page; `just assets --check` unpacks the container and compares its digest.\n\n\
         | file | what | bytes | BLAKE3 |\n|---|---|--:|---|\n{row}"
    ))
}

/// A row of a table of files.
fn row(folder: &str, name: &str, what: &str) -> Result<String> {
    let path = format!("{folder}/{name}");
    let file = fs::read(root().join(&path)).with_context(|| path.clone())?;
    let digest = blake3::hash(&file).to_hex();
    Ok(format!("| `{name}` | {what} | {} | `{digest}` |\n", file.len()))
}

/// Copies the tensors of layer 0 to a new file.
fn cut(path: &Path) -> Result<Vec<u8>> {
    let file = fs::read(path).with_context(|| path.display().to_string())?;
    let (header, data) = files::split(&file).with_context(|| path.display().to_string())?;
    let tensor = |part: &str| {
        let name = format!("model.layers.0.{part}.weight");
        let entry = &header[&name];
        let number = |value: &serde_json::Value| usize::try_from(value.as_u64()?).ok();
        let numbers = |key: &str| entry[key].as_array()?.iter().map(number).collect::<Option<Vec<_>>>();
        let range = numbers("data_offsets").with_context(|| name.clone())?;
        ensure!(entry["dtype"] == "BF16" && range.len() == 2, "{name} is not a BF16 tensor with two offsets");
        let bytes = data.get(range[0]..range[1]).with_context(|| name.clone())?;
        let shape = numbers("shape").with_context(|| name.clone())?;
        Ok(Tensor::new(&name, "BF16", &shape, bytes.to_vec()))
    };
    Ok(safetensors(&TENSORS.map(tensor).into_iter().collect::<Result<Vec<_>>>()?))
}

fn provenance() -> Result<String> {
    let mut out = String::from(
        "# Demo weights\n\n\
         Layer 0 of lm12m without `gate_proj` and `up_proj`, in BF16, from four of its checkpoints. lm12m is a 12.5\n\
         M-parameter LLaMA-shaped model, made for this project: trained for minutes on two cores on 1.3 M tokens of English,\n\
         and fine-tuned as long. Its weights carry the licence of the project, MIT OR Apache-2.0.\n\n\
         `just assets` cuts the files and writes this page; `just assets --check` compares them.\n\n\
         | file | what | bytes | BLAKE3 |\n|---|---|--:|---|\n",
    );
    let what = [
        "after pre-training",
        "`base` fine-tuned on Python source with BF16 parameters",
        "`base` fine-tuned on Python source with an FP32 master, rounded to BF16",
        "`base` with a LoRA of rank 8 merged in BF16",
    ];
    for (name, what) in CHECKPOINTS.iter().zip(what) {
        out.push_str(&row(FOLDER, &format!("{name}.safetensors"), what)?);
    }
    Ok(out)
}
