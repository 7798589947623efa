//! docs/benchmarks/sizes.json: packed bytes of the lm12m pairs and of the demo weights, which may
//! not grow.
//!
//! Every pair is also restored and compared; speed is not measured here.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use deltaloom::__internals::ratio;
use deltaloom::checkpoint::Checkpoint;
use deltaloom::{
    Bases, Container, Limits, PackOptions, Preset, ResolvedContainer, Silent, Texts, UnpackOptions,
};
use serde::{Deserialize, Serialize};

use crate::golden::{Entry, Manifest};
use crate::{Mode, merged_twice, root, say};

/// File of the recorded sizes.
pub const SIZES: &str = "docs/benchmarks/sizes.json";
const XOR_LEVEL: i32 = 1;

/// Location of a pair's weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Weights {
    /// In the data folder, which may be missing.
    Lm12m,
    /// In assets/demo.
    Demo,
}

struct Pair {
    name: &'static str,
    weights: Weights,
    base: Option<&'static str>,
    /// Folders of LoRA adapters that are also bases.
    adapters: &'static [&'static str],
    tuned: &'static str,
    goal_ratio: Option<f64>,
    preset: Preset,
}

const fn lm12m(
    name: &'static str,
    base: Option<&'static str>,
    tuned: &'static str,
    goal_ratio: Option<f64>,
) -> Pair {
    Pair { name, weights: Weights::Lm12m, base, adapters: &[], tuned, goal_ratio, preset: Preset::Default }
}

const fn demo(name: &'static str, base: Option<&'static str>, tuned: &'static str) -> Pair {
    Pair {
        name,
        weights: Weights::Demo,
        base,
        adapters: &[],
        tuned,
        goal_ratio: None,
        preset: Preset::Default,
    }
}

/// The same pair, with the adapter of lm12m's merged LoRA as a base.
const fn with_adapter(pair: Pair) -> Pair {
    Pair { adapters: &["ft_lora_merged"], ..pair }
}

/// The same pair with the slowest preset.
const fn at_max(pair: Pair) -> Pair {
    Pair { preset: Preset::Max, ..pair }
}

const PAIRS: [Pair; 18] = [
    lm12m(
        "fine-tune, BF16 parameters",
        Some("base/model.safetensors"),
        "ft_bf16/model.safetensors",
        Some(12.5),
    ),
    lm12m("fine-tune, FP32 master", Some("base/model.safetensors"), "ft_master/model.safetensors", Some(2.6)),
    lm12m(
        "next checkpoint, 42 steps later",
        Some("ckpt_11/model.safetensors"),
        "base/model.safetensors",
        Some(2.9),
    ),
    lm12m("LoRA, merged", Some("base/model.safetensors"), "ft_lora_merged/model.safetensors", Some(18.0)),
    lm12m("8 RL-sized steps", Some("rl/step20.safetensors"), "rl/step28.safetensors", Some(22.5)),
    // 66.3 % of the original.
    lm12m("base alone", None, "base/model.safetensors", Some(1.508)),
    lm12m(
        "fine-tune, FP32 slice",
        Some("slices/base.fp32.safetensors"),
        "slices/ft_master.fp32.safetensors",
        Some(1.45),
    ),
    lm12m(
        "training state, next checkpoint",
        Some("slices/state_11.safetensors"),
        "slices/state_12.safetensors",
        None,
    ),
    demo("demo: fine-tune, BF16 parameters", Some("base.safetensors"), "ft_bf16.safetensors"),
    demo("demo: fine-tune, FP32 master", Some("base.safetensors"), "ft_master.safetensors"),
    demo("demo: LoRA, merged", Some("base.safetensors"), "ft_lora_merged.safetensors"),
    demo("demo: base alone", None, "base.safetensors"),
    at_max(lm12m(
        "fine-tune, BF16 parameters, preset max",
        Some("base/model.safetensors"),
        "ft_bf16/model.safetensors",
        Some(15.0),
    )),
    at_max(lm12m(
        "fine-tune, FP32 master, preset max",
        Some("base/model.safetensors"),
        "ft_master/model.safetensors",
        Some(3.8),
    )),
    lm12m(
        "LoRA, merged, FP32 slice",
        Some("slices/base.fp32.safetensors"),
        "slices/ft_lora_merged.fp32.safetensors",
        Some(15.0),
    ),
    with_adapter(lm12m(
        "LoRA, merged, adapter given",
        Some("base/model.safetensors"),
        "ft_lora_merged/model.safetensors",
        Some(1000.0),
    )),
    with_adapter(lm12m(
        "LoRA, merged, FP32 slice, adapter given",
        Some("slices/base.fp32.safetensors"),
        "slices/ft_lora_merged.fp32.safetensors",
        Some(1000.0),
    )),
    Pair {
        adapters: &["ft_lora_merged", "merged_twice/second"],
        ..lm12m(
            "two LoRAs, merged in turn, adapters given",
            Some("base/model.safetensors"),
            "merged_twice/model.safetensors",
            Some(1000.0),
        )
    },
];

/// One pair and its sizes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Size {
    /// Name in tables.
    pub name: String,
    /// Location of the weights.
    pub weights: Weights,
    /// The base, if there is one.
    pub base: Option<String>,
    /// The packed file.
    pub tuned: String,
    /// Size of the file.
    pub original_bytes: u64,
    /// Size of the container.
    pub packed_bytes: u64,
    /// Original bytes over packed bytes.
    pub ratio: f64,
    /// Least ratio that is required.
    pub goal_ratio: Option<f64>,
    /// zstd of the XOR of both files' tensors.
    pub xor_zstd1_bytes: u64,
    /// Original bytes over that.
    pub xor_zstd1_ratio: f64,
}

/// The recorded sizes.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub struct Sizes {
    /// The command that measures them again.
    pub command: String,
    /// What the columns mean.
    pub notes: Vec<String>,
    /// The sizes in the order of the tables.
    pub sizes: Vec<Size>,
}

/// Reads the recorded sizes.
///
/// # Errors
/// If they are missing or unreadable.
pub fn recorded() -> Result<Sizes> {
    let json = fs::read(root().join(SIZES)).with_context(|| format!("{SIZES}; run `just sizes`"))?;
    serde_json::from_slice(&json).context(SIZES)
}

impl Pair {
    /// The path of one of its files, below the data folder.
    fn path(&self, data: &Path, file: &str) -> PathBuf {
        match self.weights {
            Weights::Lm12m if file.starts_with(merged_twice::FOLDER) => merged_twice::path(file),
            Weights::Lm12m => data.join("lm12m").join(file),
            Weights::Demo => root().join("assets/demo").join(file),
        }
    }

    fn open(&self, data: &Path, file: &str) -> Result<Checkpoint> {
        Ok(Checkpoint::open(&self.path(data, file), &Limits::default())?)
    }

    fn open_bases(&self, data: &Path) -> Result<Bases> {
        let paths: Vec<PathBuf> = self.base.iter().map(|base| self.path(data, base)).collect();
        let mut bases = Bases::default();
        let adapters: Vec<PathBuf> = self.adapters.iter().map(|adapter| self.path(data, adapter)).collect();
        adapters.iter().try_for_each(|adapter| bases.push_adapter(adapter, &Limits::default()))?;
        bases.push_paths(&paths, &Limits::default())?;
        // Named by their paths relative to their own folder.
        let given = paths.iter().zip(self.base).chain(adapters.iter().zip(self.adapters.iter().copied()));
        bases.set_names(given.map(|(path, name)| (path.as_path(), name)))?;
        Ok(bases)
    }

    /// Packs it into `target` and returns the size.
    fn pack(&self, data: &Path, target: &Path) -> Result<u64> {
        let (checkpoint, bases) = (self.open(data, self.tuned)?, self.open_bases(data)?);
        let options = PackOptions::default().with_preset(self.preset).with_identity(Some(Texts::new()));
        Ok(deltaloom::pack(&checkpoint, &bases, target, &options, &Silent)?.packed_bytes)
    }

    fn measure(&self, data: &Path) -> Result<Size> {
        let scratch = tempfile::tempdir()?;
        let (packed, restored) = (scratch.path().join("packed.loom"), scratch.path().join("restored"));
        let packed_bytes = self.pack(data, &packed)?;
        let container = Container::open(&packed, &Limits::default())?;
        let resolved = ResolvedContainer::new(container, &self.open_bases(data)?)?;
        deltaloom::unpack(&resolved, &restored, &UnpackOptions::default(), &Silent)?;
        let original = fs::read(self.path(data, self.tuned))?;
        ensure!(fs::read(&restored)? == original, "the restored file differs from {}", self.tuned);
        let xor_zstd1_bytes = zstd::bulk::compress(&self.xor(data)?, XOR_LEVEL)?.len() as u64;
        let original_bytes = original.len() as u64;
        Ok(Size {
            name: self.name.to_owned(),
            weights: self.weights,
            base: self.base.map(str::to_owned),
            tuned: self.tuned.to_owned(),
            original_bytes,
            packed_bytes,
            ratio: rounded(ratio(original_bytes, packed_bytes)),
            goal_ratio: self.goal_ratio,
            xor_zstd1_bytes,
            xor_zstd1_ratio: rounded(ratio(original_bytes, xor_zstd1_bytes)),
        })
    }

    /// The bytes of all tensors, each XORed with the base's tensor of the same name if it has the
    /// same type.
    fn xor(&self, data: &Path) -> Result<Vec<u8>> {
        let tuned = self.open(data, self.tuned)?;
        let base = self.base.map(|base| self.open(data, base)).transpose()?;
        let mut out = Vec::new();
        for (member, info) in tuned.tensors() {
            let mut values = vec![0; usize::try_from(info.len_bytes())?];
            tuned.read(member, info, 0, &mut values)?;
            let found = base.iter().find_map(|base| {
                base.tensors()
                    .find(|(_, other)| other.name == info.name && other.same_type(info))
                    .map(|place| (base, place))
            });
            if let Some((base, (member, info))) = found {
                let mut others = vec![0; values.len()];
                base.read(member, info, 0, &mut others)?;
                values.iter_mut().zip(others).for_each(|(value, other)| *value ^= other);
            }
            out.extend(values);
        }
        Ok(out)
    }
}

/// A ratio with three decimals.
fn rounded(ratio: f64) -> f64 {
    (1000.0 * ratio).round() / 1000.0
}

/// Records the sizes, or checks that none has grown and every goal is met.
///
/// # Errors
/// A size that has grown, a missed goal, or weights that are not restored exactly.
pub fn run(mode: Mode, data: &Path) -> Result<()> {
    let with_lm12m = data.join("lm12m").is_dir();
    if !with_lm12m {
        let note = "note: the lm12m weights are absent (no lm12m/ in {}): only the demo weights are measured";
        say(&note.replace("{}", &data.display().to_string()))?;
    }
    if with_lm12m {
        merged_twice::make(&data.join("lm12m"))?;
    }
    let before = recorded().ok();
    let old = |pair: &Pair| {
        before.iter().flat_map(|sizes| &sizes.sizes).find(|size| size.name == pair.name).cloned()
    };
    let mut faults = Vec::new();
    let mut sizes = Vec::new();
    for pair in PAIRS {
        let size = if with_lm12m || pair.weights == Weights::Demo {
            let size = pair.measure(data).with_context(|| pair.name.to_owned())?;
            say(&line(&size, old(&pair).as_ref()))?;
            faults.extend(fault(&size, old(&pair).as_ref(), mode));
            Some(size)
        } else {
            old(&pair)
        };
        sizes.extend(size);
    }
    if mode == Mode::Write {
        write(sizes)?;
    }
    if faults.is_empty() { Ok(()) } else { bail!("{}", faults.join("\n")) }
}

/// Checks the sizes of the demo weights, which are always available.
///
/// # Errors
/// As [`run`].
pub fn check_demo() -> Result<()> {
    let recorded = recorded()?;
    for pair in PAIRS.iter().filter(|pair| pair.weights == Weights::Demo) {
        let size = pair.measure(Path::new("")).with_context(|| pair.name.to_owned())?;
        let old = recorded.sizes.iter().find(|size| size.name == pair.name);
        if let Some(fault) = fault(&size, old, Mode::Check) {
            bail!(fault);
        }
    }
    Ok(())
}

fn line(size: &Size, old: Option<&Size>) -> String {
    let change = match old {
        Some(old) if size.packed_bytes < old.packed_bytes => {
            format!(", {} smaller than recorded: run `just sizes`", old.packed_bytes - size.packed_bytes)
        }
        Some(old) if size.packed_bytes > old.packed_bytes => {
            format!(", {} LARGER than recorded", size.packed_bytes - old.packed_bytes)
        }
        Some(_) => String::new(),
        None => ", not recorded before".to_owned(),
    };
    let goal = size.goal_ratio.map_or_else(String::new, |goal| format!(" (goal {goal})"));
    format!(
        "{:<36} {:>9} -> {:>9} bytes, ratio {:.3}{goal}, XOR + zstd-{XOR_LEVEL} {:.3}{change}",
        size.name, size.original_bytes, size.packed_bytes, size.ratio, size.xor_zstd1_ratio
    )
}

fn fault(size: &Size, old: Option<&Size>, mode: Mode) -> Option<String> {
    let name = &size.name;
    if size.goal_ratio.is_some_and(|goal| size.ratio < goal) {
        return Some(format!("{name}: ratio {} misses its goal", size.ratio));
    }
    match (mode, old) {
        (Mode::Write, _) => None,
        (Mode::Check, None) => Some(format!("{name} is not in {SIZES}; run `just sizes`")),
        (Mode::Check, Some(old)) => (size.packed_bytes > old.packed_bytes).then(|| {
            let (now, before) = (size.packed_bytes, old.packed_bytes);
            format!("{name}: {now} bytes, recorded: {before}; a size may only grow with an ADR")
        }),
    }
}

fn write(sizes: Vec<Size>) -> Result<()> {
    let notes = [
        "lm12m is a 12.5 M-parameter LLaMA-shaped model, trained for minutes on two cores; demo is cut from it.",
        "Sizes are whole files, index, tables, digests and names of bases included, with the default preset where no other is named; they do not depend on the machine.",
        "xor_zstd1: zstd level 1 of the XOR of all tensors with those of the base (of the tensors themselves without one), headers left out.",
    ];
    let sizes = Sizes {
        command: "cargo run --release -p xtask -- sizes".to_owned(),
        notes: notes.map(str::to_owned).to_vec(),
        sizes,
    };
    let mut json = serde_json::to_vec_pretty(&sizes)?;
    json.push(b'\n');
    crate::settle(Mode::Write, SIZES, &json, "sizes")
}

/// Packs the lm12m pairs into `folder`, with a manifest, for readers in other languages.
///
/// # Errors
/// Errors of reading and writing, including missing weights.
pub fn write_pairs(folder: &Path, data: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    let data = data.canonicalize().with_context(|| data.display().to_string())?;
    merged_twice::make(&data.join("lm12m"))?;
    let mut manifest = Manifest::default();
    for (number, pair) in PAIRS
        .iter()
        .filter(|pair| pair.weights == Weights::Lm12m && pair.preset == Preset::Default)
        .enumerate()
    {
        let container = format!("pair{}.loom", number + 1);
        let target = folder.join(&container);
        if target.exists() {
            fs::remove_file(&target)?;
        }
        let packed_bytes = pair.pack(&data, &target).with_context(|| pair.name.to_owned())?;
        say(&format!("{container}: {}, {packed_bytes} bytes", pair.name))?;
        let path = |file: &str| pair.path(&data, file).display().to_string();
        manifest.containers.push(Entry {
            container,
            original: path(pair.tuned),
            bases: pair
                .base
                .map(str::to_owned)
                .into_iter()
                .chain(pair.adapters.iter().map(|adapter| format!("{adapter}/adapter_model.safetensors")))
                .map(|base| path(&base))
                .collect(),
            covers: pair.name.to_owned(),
            preset: "default".to_owned(),
            chunk_log2: PackOptions::default().chunk_log2,
            has_history: false,
            identity: None,
        });
    }
    Ok(fs::write(folder.join("manifest.json"), manifest.to_json()?)?)
}
