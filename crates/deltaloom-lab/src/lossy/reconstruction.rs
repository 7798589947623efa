//! Writes what a reader of a lossy method has after a step, as a checkpoint on disk that other
//! programs can open.
//!
//! Tensors arrive in the order of their places; none is kept in memory.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use deltaloom::__internals::{Element, to_usize};
use deltaloom::checkpoint::{Checkpoint, Contents, FileSource, Layout, Member, ReadAt as _};
use deltaloom::tensor::{DType, TensorInfo};
use deltaloom::{Error, Limits, Result};

/// A checkpoint that is being written.
pub(super) struct Reconstruction {
    folder: PathBuf,
    layout: Layout,
    members: Vec<Member>,
    /// The file to which tensors are appended.
    open: Option<(usize, File)>,
}

impl Reconstruction {
    /// Starts a checkpoint of these members in an empty folder. A single file keeps its name there.
    pub(super) fn create(folder: &Path, layout: Layout, members: Vec<Member>) -> Result<Self> {
        for member in &members {
            let path = folder.join(&member.path);
            let parent = path.parent().unwrap_or(folder);
            std::fs::create_dir_all(parent).map_err(Error::writing(parent))?;
            let mut file = File::create_new(&path).map_err(Error::writing(&path))?;
            if let Contents::Safetensors(header) = &member.contents {
                let length = (header.len() as u64).to_le_bytes();
                file.write_all(&length)
                    .and_then(|()| file.write_all(header))
                    .map_err(Error::writing(&path))?;
            }
        }
        Ok(Self { folder: folder.to_path_buf(), layout, members, open: None })
    }

    fn member_path(&self, member: usize) -> PathBuf {
        self.folder.join(&self.members[member].path)
    }

    /// Appends the next tensor of a member.
    pub(super) fn push(&mut self, member: usize, bytes: &[u8]) -> Result<()> {
        let path = self.member_path(member);
        let mut file = match self.open.take() {
            Some((open, file)) if open == member => file,
            _ => File::options().append(true).open(&path).map_err(Error::writing(&path))?,
        };
        file.write_all(bytes).map_err(Error::writing(&path))?;
        self.open = Some((member, file));
        Ok(())
    }

    /// Reads a tensor that was pushed before.
    pub(super) fn read_back(&self, member: usize, tensor: &TensorInfo) -> Result<Vec<u8>> {
        let path = self.member_path(member);
        let mut bytes = vec![0; to_usize(tensor.len_bytes())];
        let start = self.members[member].data_offset() + tensor.begin;
        FileSource::open(&path)?.read_at(start, &mut bytes).map_err(Error::io(&path))?;
        Ok(bytes)
    }

    /// Opens the checkpoint after the last tensor.
    pub(super) fn finish(self, limits: &Limits) -> Result<Reconstructed> {
        let path = match (self.layout, self.members.first()) {
            (Layout::File, Some(member)) => self.folder.join(&member.path),
            _ => self.folder,
        };
        let checkpoint = Checkpoint::open(&path, limits)?;
        Ok(Reconstructed { path, checkpoint })
    }
}

/// What a reader has after a step.
pub(super) struct Reconstructed {
    pub(super) path: PathBuf,
    pub(super) checkpoint: Checkpoint,
}

/// A member in which every tensor that the methods treat as FP32 is FP32.
pub(super) fn widened(member: &Member) -> Member {
    if member.contents == Contents::Opaque {
        return member.clone();
    }
    let mut end = 0;
    let mut header = Map::new();
    let mut tensors = member.tensors.clone();
    for tensor in &mut tensors {
        let len_bytes = match Element::of(&tensor.dtype) {
            Some(element) => tensor.len_bytes() / element.bytes() as u64 * 4,
            None => tensor.len_bytes(),
        };
        if Element::of(&tensor.dtype).is_some() {
            tensor.dtype = DType::F32;
        }
        (tensor.begin, tensor.end) = (end, end + len_bytes);
        end = tensor.end;
        let entry = json!({"dtype": tensor.dtype.name(), "shape": tensor.shape, "data_offsets": [tensor.begin, tensor.end]});
        header.insert(tensor.name.clone(), entry);
    }
    Member::safetensors(member.path.clone(), Value::Object(header).to_string().into_bytes(), tensors, 0)
}
