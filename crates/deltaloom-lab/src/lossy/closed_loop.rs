//! One step of a corrected series. Every tensor is compared with what the reader has, so an omitted
//! difference counts again in the next step.
//!
//! The first checkpoint of a series does not come here: it is an ordinary container.

use std::collections::HashMap;
use std::io::Write;
use std::path::Path;

use super::corrected::{self, Coded};
use super::errors::{self, Errors, Tensor};
use super::file::{Coding, Index, LossyWriter, MemberEntry, TensorEntry};
use super::reconstruction::{Reconstructed, Reconstruction};
use super::report::{StepReport, Thresholds};
use super::tensors::{self, Named};
use super::threshold::Rule;
use deltaloom::__internals::{Element, check_cancelled, load_singles};
use deltaloom::checkpoint::{Checkpoint, Contents, Layout, Member};
use deltaloom::tensor::TensorInfo;
use deltaloom::{Limits, Progress, Result};

/// Estimated index bytes per tensor in addition to its name, and for everything else, for a file
/// with a target size.
const INDEX_BYTES_PER_TENSOR: u64 = 160;
const INDEX_BYTES: u64 = 400;

/// The step to store.
pub(super) struct Step<'a> {
    pub(super) method: &'a str,
    pub(super) rule: Rule,
    pub(super) number: u64,
    pub(super) previous_number: u64,
    pub(super) checkpoint: &'a Checkpoint,
    /// The original of the previous step.
    pub(super) before: &'a Checkpoint,
    /// The reader's version of that.
    pub(super) held: &'a Checkpoint,
}

impl Step<'_> {
    /// Writes the file of the step to `out`, and the checkpoint that a reader then has into an
    /// empty folder.
    pub(super) fn store(
        &self,
        out: impl Write,
        folder: &Path,
        progress: &dyn Progress,
    ) -> Result<(StepReport, Reconstructed)> {
        let (held, before) = (Named::new(self.held), Named::new(self.before));
        let mut writer = LossyWriter::new(out)?;
        let mut rest =
            Reconstruction::create(folder, self.checkpoint.layout, self.checkpoint.members.to_vec())?;
        let members = self.push_headers(&mut writer)?;
        let mut report = StepReport::new(self.number, self.checkpoint.len_bytes());
        let mut budget = Budget::new(self.rule, self.checkpoint, &members);
        let mut entries: Vec<TensorEntry> = Vec::new();
        let mut seen: HashMap<(blake3::Hash, &str, &[u64], bool), usize> = HashMap::new();
        let places: Vec<(usize, &TensorInfo)> = self.checkpoint.tensors().collect();
        let (mut errors, mut thresholds) = (Errors::default(), Thresholds::default());
        for (i, &(member, info)) in places.iter().enumerate() {
            check_cancelled(progress)?;
            let original = self.checkpoint.read_tensor(member, info)?;
            // State is exact, so it is never tied to weights, which may be inexact.
            let is_state = tensors::is_optimizer_state(&self.checkpoint.members[member].path, info);
            let key = (blake3::hash(&original), info.dtype.name(), &info.shape[..], is_state);
            let held_values = held.read(&info.name, |held| held.same_type(info))?;
            let element = Element::of(&info.dtype);
            let (coding, values) = match (seen.get(&key), &held_values, element) {
                (Some(&to), ..) => (Coding::Tied { to }, rest.read_back(places[to].0, places[to].1)?),
                (None, Some(held), _) if *held == original => (Coding::Same, original.clone()),
                (None, Some(held), Some(element)) => {
                    let rule = if is_state { Rule::Fixed(0.0) } else { self.rule };
                    let coded = corrected::encode(element, &rule, &original, held, budget.share(info));
                    let (coding, values) = thresholded(element, &coded, &original, held, &mut writer)?;
                    report.kept_elems += coded.kept as u64;
                    if !is_state {
                        thresholds.push(coded.threshold);
                    }
                    (coding, values)
                }
                _ => (Coding::Exact { payload: writer.push_frame(&original)? }, original.clone()),
            };
            budget.spend(info, coding.len_bytes());
            if let Some(element) = element {
                report.elems += (original.len() / element.bytes()) as u64;
                let zeros = || vec![0; original.len()];
                let before = before.read(&info.name, |before| before.same_type(info))?.unwrap_or_else(zeros);
                let held = held_values.unwrap_or_else(zeros);
                add(&mut errors, element, [&original, &values, &before, &held]);
            }
            let digest = blake3::hash(&values).to_string();
            rest.push(member, &values)?;
            seen.entry(key).or_insert(i);
            let (name, dtype) = (info.name.clone(), info.dtype.name().to_owned());
            entries.push(TensorEntry { name, dtype, shape: info.shape.clone(), digest, coding });
            progress.advance(info.len_bytes());
        }
        let index = Index {
            lossy: true,
            form: "corrected".to_owned(),
            method: self.method.to_owned(),
            rule: self.rule,
            step: self.number,
            previous_step: self.previous_number,
            is_directory: self.checkpoint.layout == Layout::Directory,
            members,
            tensors: entries,
        };
        report.out_bytes = writer.finish(&index)?;
        report.set_errors(&errors, &thresholds);
        Ok((report, rest.finish(&Limits::default())?))
    }

    fn push_headers(&self, writer: &mut LossyWriter<impl Write>) -> Result<Vec<MemberEntry>> {
        let entry = |member: &Member| {
            let header = match &member.contents {
                Contents::Safetensors(header) => Some(writer.push_frame(header)?),
                Contents::Opaque | Contents::Framed(_) => None,
            };
            Ok(MemberEntry { path: member.path.clone(), header })
        };
        self.checkpoint.members.iter().map(entry).collect()
    }
}

/// Writes the payload of a tensor and decodes it to what the reader gets.
fn thresholded(
    element: Element,
    coded: &Coded,
    original: &[u8],
    held: &[u8],
    writer: &mut LossyWriter<impl Write>,
) -> Result<(Coding, Vec<u8>)> {
    let (positions, kept) = (coded.positions, coded.kept);
    let mut values = held.to_vec();
    corrected::decode(element.number(), positions, kept, &coded.payload, &mut values)?;
    let singles = |bytes: &[u8]| load_singles(element, bytes);
    let coding = Coding::Thresholded {
        threshold: coded.threshold.value,
        bound: rounded_up(errors::greatest(&singles(original), &singles(&values))),
        kept: kept as u64,
        positions,
        previous: blake3::hash(held).to_string(),
        payload: if kept > 0 { Some(writer.push(&coded.payload)?) } else { None },
    };
    Ok((coding, values))
}

/// The least F32 number that is not below `x`.
fn rounded_up(x: f64) -> f32 {
    #[expect(clippy::cast_possible_truncation, reason = "a result that is rounded down is corrected")]
    let near = x as f32;
    if f64::from(near) < x { near.next_up() } else { near }
}

/// Adds the errors of a tensor: its original and reconstruction, each now and one step before.
fn add(errors: &mut Errors, element: Element, [original, values, before, held]: [&[u8]; 4]) {
    errors.add(&Tensor {
        original: &load_singles(element, original),
        reconstructed: &load_singles(element, values),
        original_before: &load_singles(element, before),
        reconstructed_before: &load_singles(element, held),
    });
}

/// Bytes left for payloads, and bytes of the tensors that share them.
struct Budget {
    bytes: u64,
    tensor_bytes: u64,
}

impl Budget {
    fn new(rule: Rule, checkpoint: &Checkpoint, members: &[MemberEntry]) -> Self {
        let Rule::Bytes(target) = rule else { return Self { bytes: 0, tensor_bytes: 0 } };
        let headers: u64 = members.iter().filter_map(|m| m.header).map(|place| place.len_bytes).sum();
        let tensors = checkpoint.tensors().count() as u64;
        let index = INDEX_BYTES + headers + INDEX_BYTES_PER_TENSOR * tensors;
        let tensor_bytes = checkpoint.tensors().map(|(_, info)| info.len_bytes()).sum();
        Self { bytes: target.saturating_sub(index), tensor_bytes }
    }

    /// Bytes that a tensor may use: its share of the bytes left, in proportion to its size among
    /// the tensors left.
    fn share(&self, info: &TensorInfo) -> u64 {
        let share =
            u128::from(self.bytes) * u128::from(info.len_bytes()) / u128::from(self.tensor_bytes.max(1));
        u64::try_from(share).unwrap_or(u64::MAX)
    }

    fn spend(&mut self, info: &TensorInfo, bytes: u64) {
        self.bytes = self.bytes.saturating_sub(bytes);
        self.tensor_bytes = self.tensor_bytes.saturating_sub(info.len_bytes());
    }
}

impl Coding {
    fn len_bytes(&self) -> u64 {
        match self {
            Self::Thresholded { payload, .. } => payload.map_or(0, |place| place.len_bytes),
            Self::Exact { payload } => payload.len_bytes,
            Self::Same | Self::Tied { .. } => 0,
        }
    }
}
