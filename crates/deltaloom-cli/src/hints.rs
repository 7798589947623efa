//! What a user can do about an error: the one place that turns errors of the libraries into options
//! and commands of this program.

use std::io;

use deltaloom::checkpoint::Foreign;
use deltaloom::{Access, Error, ErrorKind, Missing};

/// For what makes no sense.
pub(crate) const USAGE: &str = "the command's --help says what it takes";

/// One sentence, where something can be said.
pub(crate) fn hint_of(error: &Error) -> Option<String> {
    #[cfg(feature = "object-store")]
    if let Some(fault) = deltaloom_object_store::fault(error) {
        return fault.hint().map(str::to_owned);
    }
    let hint = match error {
        Error::InFile { source, .. } => return hint_of(source),
        Error::CutShort { path } => {
            let path = path.display();
            return Some(format!(
                "finish it first: `deltaloom unpack FILE.loom --in-place {path}`, with the container that it was to become"
            ));
        }
        Error::Protected { is_input: true, .. } => {
            "choose another --output; `unpack --in-place BASE` turns a base into its fine-tune"
        }
        Error::Protected { .. } => "choose another --output, or `-` for standard output",
        Error::Changed { .. } => "run it again when nobody writes to the file",
        Error::BaseMismatch { .. } => {
            "give every base that it was packed against with --base, or with --base-dir a folder in which they are; `deltaloom inspect` names them"
        }
        Error::BaseNotFound { .. } => {
            "download it, or give the folder that it is in; --base takes a base under any name"
        }
        Error::NoUsefulBase { .. } => {
            "leave --base-dir out to pack it on its own, or give a base of your choice with --base"
        }
        Error::AlreadyExists { .. } => "give --overwrite to replace it, or choose another --output",
        Error::NotInPlace { .. } => "unpack to a new file with --output",
        Error::SharedFile { .. } => {
            "a shared cache may rely on it: copy it first, or give --overwrite to change it all the same"
        }
        Error::Unfinished { source, .. } if matches!(**source, Error::Io { .. } | Error::Cancelled) => {
            "run the same command again: the journal beside the file lets it go on where it stopped"
        }
        Error::Unfinished { .. } => {
            "nothing leads on from here: put the original file back, delete the journal and start anew"
        }
        Error::Journal { .. } => {
            "run again the very command that left the journal; or put the original file back, delete the journal and start anew"
        }
        Error::NotASeries { .. } => "`deltaloom series init` makes one",
        Error::StepTaken { .. } => {
            "nothing was changed; give it another --step, or where the run went back, --rewind: later steps become a branch"
        }
        Error::StepOutOfOrder { .. } => {
            "steps are added in order; where the run went back, give --rewind: later steps become a branch"
        }
        Error::KeepRule { .. } => {
            "nothing was changed; `deltaloom series log --all` lists the steps with their text, and `last 1` keeps only the newest"
        }
        Error::StepDiffers { .. } => "nothing was stored; if it is the right checkpoint, give --force",
        Error::UnsupportedVersion { .. } | Error::UnsupportedSeries { .. } => {
            "a newer deltaloom wrote this file; update to read it"
        }
        Error::Foreign { found, .. } => of_foreign(*found),
        Error::Lossy => {
            "`deltaloom lab tpde --verify` checks the folder that it is in; no other command reads it"
        }
        Error::Truncated { .. } => "the file was cut off; copy or download it again",
        Error::NotFound { kind: Missing::Tensor, .. } => {
            "`deltaloom inspect --tensors` lists the tensors of a container"
        }
        Error::NotFound { kind: Missing::Step, .. } => {
            "`deltaloom series ls --all` lists the steps of a series"
        }
        Error::Corrupt { .. } | Error::DigestMismatch { .. } | Error::LimitExceeded { .. } => {
            "the file is damaged or not of this kind; compare it with its source"
        }
        Error::InvalidArgument(_) => USAGE,
        Error::Io { access, source, .. } => return of_io(error.kind(), *access, source).map(str::to_owned),
        _ => return None,
    };
    Some(hint.to_owned())
}

/// What can be done with a file of another kind.
fn of_foreign(found: Foreign) -> &'static str {
    match found {
        Foreign::Empty => "a download or a copy came to nothing: fetch it again",
        Foreign::LfsPointer => "`git lfs pull` fetches the file that it stands for",
        Foreign::Html => "a download failed, or wants a login: fetch the file itself",
        Foreign::Xml | Foreign::Json => {
            "if this was a download, the text says why it failed; give the weights, or the folder that holds them"
        }
        Foreign::ShardIndex => "give the folder that holds it: deltaloom then reads every shard",
        Foreign::Safetensors => "pack it first with `deltaloom pack`",
        Foreign::Container => "restore it first with `deltaloom unpack`",
        Foreign::Gguf => {
            "give the safetensors files that it was made from; in a folder it is stored as it is"
        }
        Foreign::TorchArchive | Foreign::Pickle => {
            "write it again with safetensors.torch.save_file, or save_pretrained; in a folder it is stored as it is"
        }
        Foreign::Zip | Foreign::Tar => "extract it first, and give the file or folder in it",
        Foreign::Gzip | Foreign::Zstd | Foreign::Xz | Foreign::Bzip2 => "decompress it first",
        // Files of other libraries: arrays and models.
        _ => "write its weights as safetensors; in a folder it is stored as it is",
    }
}

fn of_io(kind: ErrorKind, access: Access, source: &io::Error) -> Option<&'static str> {
    Some(match (kind, access, source.kind()) {
        (ErrorKind::DiskFull, _, io::ErrorKind::FileTooLarge) => {
            "the system limits the size of files (`ulimit -f`); nothing was written under the target's name"
        }
        (ErrorKind::DiskFull, ..) => "the disk is full; nothing was written under the target's name",
        (ErrorKind::CannotWrite, _, io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            "make the folder first, or choose another --output"
        }
        (ErrorKind::CannotWrite, ..) => "check the permissions of the folder, or choose another --output",
        (ErrorKind::NotFound, ..) => {
            "check the path; deltaloom reads local files and asks no model hub for names such as org/model"
        }
        (ErrorKind::Unreadable, _, io::ErrorKind::PermissionDenied) => "check the permissions of the file",
        (ErrorKind::Unsupported, ..) => {
            "checkpoints, bases and containers are read at any place, which pipes and devices do not allow: write it to a file first"
        }
        _ => return None,
    })
}
