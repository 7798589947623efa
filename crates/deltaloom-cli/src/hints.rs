//! What a user can do about an error: the only place that translates errors of the libraries into
//! options and commands of this program.

use std::io;

use deltaloom::checkpoint::Foreign;
use deltaloom::{Access, Error, ErrorKind, Missing};

/// For mistakes on the command line.
pub(crate) const USAGE: &str = "see the command's --help";

/// One sentence, if there is advice.
pub(crate) fn hint_of(error: &Error) -> Option<String> {
    if let Error::StepUnknown { step, .. } = error {
        return Some(format!("run the same command with --step {step}: then it is not added twice"));
    }
    #[cfg(feature = "object-store")]
    if let Some(fault) = deltaloom_object_store::fault(error) {
        return fault.hint().map(str::to_owned);
    }
    let hint = match error {
        Error::InFile { source, .. } => return hint_of(source),
        Error::CutShort { path } => {
            let path = path.display();
            return Some(format!(
                "complete the interrupted change first: `deltaloom unpack FILE.loom --in-place {path}`, with the same container"
            ));
        }
        Error::Protected { is_input: true, .. } => {
            "choose another --output; to turn a base into its fine-tune, use `unpack --in-place BASE`"
        }
        Error::Protected { .. } => "choose another path; where one file is written, `-` is standard output",
        Error::UnsupportedName { .. } => "rename the file; --exclude leaves out files of the checkpoint",
        Error::Changed { .. } => "run the command again when nothing is writing to the file",
        Error::BaseMismatch { .. } => {
            "name every base that it was packed against with --base, or a folder that contains them with --base-dir; `deltaloom inspect` lists them"
        }
        Error::BaseNotFound { .. } => {
            "download it, or name the folder that contains it; with --base, the name of the file does not matter"
        }
        Error::NoUsefulBase { .. } => "omit --base-dir to pack it on its own, or choose a base with --base",
        Error::AlreadyExists { .. } => "use --overwrite to replace it, or choose another --output",
        Error::NotInPlace { .. } => "unpack to a new file with --output",
        Error::SharedFile { .. } => {
            "a shared cache may depend on it: copy the file first, or use --overwrite to change it anyway"
        }
        Error::Unfinished { source, .. } if matches!(**source, Error::Io { .. } | Error::Cancelled) => {
            "run the same command again: it resumes with the journal next to the file"
        }
        Error::Unfinished { .. } => {
            "this change cannot be resumed: restore the original file, delete the journal and start again"
        }
        Error::Journal { .. } => {
            "run the command that left the journal again; or restore the original file, delete the journal and start again"
        }
        Error::NotASeries { .. } => "create one with `deltaloom series init`",
        Error::StepTaken { .. } => {
            "nothing was changed; choose another --step, or, if the run went back, use --rewind: later steps become a branch"
        }
        Error::StepOutOfOrder { .. } => {
            "steps are added in order; if the run went back, use --rewind: later steps become a branch"
        }
        Error::KeepRule { .. } => {
            "nothing was changed; `deltaloom series log --all` lists the steps with their texts, and the rule `last 1` keeps only the newest"
        }
        Error::StepDiffers { .. } => "nothing was stored; if it is the right checkpoint, use --force",
        Error::UnsupportedVersion { .. } | Error::UnsupportedSeries { .. } => {
            "a newer version of deltaloom wrote this file; update deltaloom to read it"
        }
        Error::Foreign { found, .. } | Error::Unread { found, .. } => of_foreign(*found),
        Error::Lossy => {
            "`deltaloom lab tpde --verify` checks the folder that contains it; no other command reads it"
        }
        Error::Truncated { .. } => "the file is incomplete; copy or download it again",
        Error::NotFound { kind: Missing::Tensor, .. } => {
            "`deltaloom inspect --tensors` lists the tensors of a container"
        }
        Error::NotFound { kind: Missing::Step, .. } => {
            "`deltaloom series log --all` lists the steps of a series with their texts"
        }
        Error::Corrupt { .. } | Error::DigestMismatch { .. } | Error::LimitExceeded { .. } => {
            "the file is damaged or of another kind; compare it with its source"
        }
        Error::InvalidArgument(_) => USAGE,
        Error::Io { access, source, .. } => return of_io(error.kind(), *access, source).map(str::to_owned),
        _ => return None,
    };
    Some(hint.to_owned())
}

/// Advice for a file of another kind.
fn of_foreign(found: Foreign) -> &'static str {
    match found {
        Foreign::Empty => "a download or copy failed; fetch the file again",
        Foreign::LfsPointer => "run `git lfs pull` to fetch the real file",
        Foreign::Html => "a download failed or requires a login; fetch the file itself",
        Foreign::Xml | Foreign::Json => {
            "if this was a download, the text says why it failed; name the weights, or the folder that contains them"
        }
        Foreign::ShardIndex => "name the folder that contains it; deltaloom then reads every shard",
        Foreign::Safetensors => "pack it first with `deltaloom pack`",
        Foreign::Container => "restore it first with `deltaloom unpack`",
        Foreign::Gguf => {
            "use the safetensors files that it was made from; in a folder it is stored unchanged"
        }
        Foreign::TorchArchive | Foreign::Pickle => {
            "save it again with safetensors.torch.save_file or save_pretrained; in a folder it is stored unchanged"
        }
        Foreign::Zip | Foreign::Tar => "extract it first, and name the extracted file or folder",
        Foreign::Gzip | Foreign::Zstd | Foreign::Xz | Foreign::Bzip2 => "decompress it first",
        // Files of other libraries: arrays and models.
        _ => "save its weights as safetensors; in a folder it is stored unchanged",
    }
}

fn of_io(kind: ErrorKind, access: Access, source: &io::Error) -> Option<&'static str> {
    Some(match (kind, access, source.kind()) {
        (ErrorKind::DiskFull, _, io::ErrorKind::FileTooLarge) => {
            "the system limits the size of files (`ulimit -f`); no output was written"
        }
        (ErrorKind::DiskFull, ..) => "the disk is full; no output was written",
        (ErrorKind::CannotWrite, _, io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            "create the folder first, or choose another --output"
        }
        (ErrorKind::CannotWrite, ..) => "check the permissions of the folder, or choose another --output",
        (ErrorKind::NotFound, ..) => {
            "check the path; deltaloom does not download models by name, such as org/model"
        }
        (ErrorKind::Unreadable, _, io::ErrorKind::PermissionDenied) => "check the permissions of the file",
        (ErrorKind::Unsupported, ..) => {
            "checkpoints, bases and containers are read at arbitrary positions, which pipes and devices do not support; write it to a file first"
        }
        _ => return None,
    })
}
