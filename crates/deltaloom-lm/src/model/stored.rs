//! Fine-tunes of a base whose weights were converted when it was opened: F16, the layout of GPT-2,
//! and the blocks of GGUF. Their containers are differences from the stored bytes. So they are
//! decoded, converted as the base was, and packed again in memory, against the numbers that are
//! multiplied.

use std::path::Path;
use std::sync::Arc;

use deltaloom::checkpoint::Checkpoint;
use deltaloom::{
    Bases, Container, Error, Limits, Missing, PackOptions, ResolvedContainer, Result, Silent, UnpackOptions,
    pack_to, unpack_to,
};

use super::convert::{self, Conversion, Safetensors};
use super::{ModelConfig, gguf};
use crate::gguf::Gguf;

/// How the weights of a base were stored.
pub(super) enum Stored {
    /// As they are multiplied.
    Plain,
    /// In another dtype or layout.
    Converted(Conversion, Arc<Checkpoint>),
    /// In this GGUF file.
    Gguf,
}

impl Stored {
    /// The container of the same fine-tune against the widened `base`, which is at `path`. If that
    /// is another one, it has only weights, and the original comes with it.
    pub(super) fn widened(
        &self,
        container: Container,
        path: &Path,
        base: &Arc<Checkpoint>,
        config: &ModelConfig,
    ) -> Result<(Container, Option<Arc<ResolvedContainer>>)> {
        let against = |checkpoint: &Arc<Checkpoint>| {
            let mut bases = Bases::default();
            bases.push_checkpoint(path, Arc::clone(checkpoint));
            bases
        };
        let resolve = |container, stored| ResolvedContainer::new(container, &against(stored)).map(Arc::new);
        let (tuned, original) = match self {
            Self::Plain => return Ok((container, None)),
            Self::Converted(conversion, stored) => {
                let original = resolve(container, stored)?;
                (of_converted(&original, *conversion, stored)?, original)
            }
            Self::Gguf => {
                let stored = Arc::new(Checkpoint::open(path, &Limits::default())?);
                let base_bytes = std::fs::metadata(path).map_err(Error::io(path))?.len();
                let original = resolve(container, &stored)?;
                (of_gguf(&original, base_bytes, config)?, original)
            }
        };
        let mut packed = Vec::new();
        pack_to(&tuned, &against(base), &mut packed, &PackOptions::default(), &Silent)?;
        let name = Path::new("the fine-tune, widened");
        let widened = Container::from_source(name, Box::new(packed), &Limits::default())?;
        Ok((widened, Some(original)))
    }
}

/// The tensors of a fine-tune, each of which has the type and shape of its base.
fn of_converted(
    resolved: &ResolvedContainer,
    conversion: Conversion,
    stored: &Checkpoint,
) -> Result<Checkpoint> {
    let mut file = Safetensors::default();
    for (_, of_base) in stored.weights() {
        let name = &of_base.name;
        let found = resolved.tensors().enumerate().find(|(_, info)| info.name == *name);
        let missing = || Error::not_found(Missing::Tensor, format!("tensor {name:?} of the fine-tune"));
        let (number, info) = found.ok_or_else(missing)?;
        if (&info.shape, &info.dtype) != (&of_base.shape, &of_base.dtype) {
            return Err(Error::InvalidArgument(format!(
                "tensor {name:?} of the fine-tune has shape {:?} of {}, not {:?} of {} as its base",
                info.shape, info.dtype, of_base.shape, of_base.dtype
            )));
        }
        let mut bytes = vec![0; usize::try_from(of_base.len_bytes()).unwrap_or(0)];
        resolved.read_into(number, &mut bytes)?;
        resolved.check(number, &bytes)?;
        conversion.push(&mut file, of_base, bytes);
    }
    if resolved.find(convert::HEAD).is_ok() && !stored.weights().any(|(_, it)| it.name == convert::HEAD) {
        let head = convert::HEAD;
        return Err(Error::InvalidArgument(format!(
            "the fine-tune has a tensor {head:?}, and its base has none"
        )));
    }
    file.checkpoint()
}

/// The model in the GGUF file that is packed. It may be up to twice as large as that of its base.
fn of_gguf(resolved: &ResolvedContainer, base_bytes: u64, config: &ModelConfig) -> Result<Checkpoint> {
    let bytes = resolved.tensors().try_fold(0_u64, |sum, info| sum.checked_add(info.len_bytes()));
    let limit = base_bytes.saturating_mul(2);
    Limits::check("bytes of a fine-tune", bytes.unwrap_or(u64::MAX), limit)?;
    let mut file = Vec::new();
    unpack_to(resolved, &mut file, &UnpackOptions::default(), &Silent)?;
    let (text, checkpoint) = gguf::read(&Gguf::from_source(Box::new(file))?)?;
    if ModelConfig::parse(&text)? != *config {
        return Err(Error::InvalidArgument("the fine-tune has other settings than its base".to_owned()));
    }
    Ok(checkpoint)
}
