//! The content of a step, however it is packed: the digest of its files, and its parts.
//! It packs nothing.

use rayon::prelude::*;

use super::add::NewStep;
use super::input::Input;
use super::manifest::{PartLayout, Parts};
use crate::checkpoint::{Checkpoint, Contents, Layout, Member};
use crate::container::{Digest, Index};
use crate::error::Result;
use crate::limits::Limits;
use crate::progress::{Progress, check_cancelled};
use crate::tensor::TensorInfo;

pub(crate) const MODEL: &str = "model";
pub(crate) const OPTIMIZER: &str = "optimizer";

/// Opens the files of a step as one checkpoint.
pub(crate) fn open(new: &NewStep, limits: &Limits) -> Result<(Checkpoint, Parts)> {
    let open = |input: &Input| input.open(&new.exclude, limits);
    let model = open(&new.model)?;
    let optimizer = new.optimizer.as_ref().map(open).transpose()?;
    let layout = |part: &Checkpoint| match part.layout {
        Layout::File => PartLayout::File,
        Layout::Directory => PartLayout::Directory,
    };
    let parts = Parts { model: layout(&model), optimizer: optimizer.as_ref().map(layout) };
    let all = [(MODEL, model)].into_iter().chain(optimizer.map(|part| (OPTIMIZER, part)));
    Ok((Checkpoint::side_by_side(all.collect(), limits)?, parts))
}

/// Digest of the files that a container restores.
pub(crate) fn of_index(index: &Index) -> String {
    let mut digests = index.tensors.iter().map(|tensor| tensor.digest);
    content(&index.members, &mut digests)
}

/// Digest of the files of a checkpoint. Reads all of them.
pub(crate) fn of_checkpoint(checkpoint: &Checkpoint, progress: &dyn Progress) -> Result<String> {
    progress.start(checkpoint.members.iter().map(Member::data_bytes).sum());
    let tensors: Vec<(usize, &TensorInfo)> = checkpoint.tensors().collect();
    let digests = tensors.par_iter().map(|(member, info)| {
        checkpoint.digest(*member, info, |len_bytes| {
            check_cancelled(progress)?;
            progress.advance(len_bytes);
            Ok(())
        })
    });
    let digests: Vec<Digest> = digests.collect::<Result<_>>()?;
    Ok(content(&checkpoint.members, &mut digests.into_iter()))
}

fn content(members: &[Member], digests: &mut impl Iterator<Item = Digest>) -> String {
    let mut hasher = blake3::Hasher::new();
    let mut push = |bytes: &[u8]| {
        hasher.update(&(bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    };
    let mut all = Vec::new();
    for member in members {
        push(member.path.as_bytes());
        match &member.contents {
            Contents::Opaque => push(b""),
            Contents::Safetensors(header) => push(header),
            Contents::Framed(frame) => {
                let mut places = Vec::new();
                for (tensor, gap) in member.tensors[1..].iter().zip(frame.gaps()) {
                    places.extend(gap.to_le_bytes());
                    places.extend(tensor.len_bytes().to_le_bytes());
                }
                push(&places);
            }
        }
        all.clear();
        for digest in digests.take(member.tensors.len()) {
            all.extend_from_slice(digest.as_bytes());
        }
        push(&all);
    }
    hasher.finalize().to_hex().to_string()
}
