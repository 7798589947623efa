//! `deltaloom cat`.

use std::io::{BufWriter, Write};

use anyhow::Result;
use deltaloom::checkpoint::output::NewFile;
use deltaloom::{Container, Limits, ResolvedContainer};

use crate::Answer;
use crate::args::CatArguments;
use crate::target::{self, Target};

pub(crate) fn run(arguments: &CatArguments) -> Result<Answer> {
    let container = Container::open(&arguments.container, &Limits::default())?;
    let bases = super::open_bases(&arguments.bases)?;
    let resolved = ResolvedContainer::for_tensor(container, &bases, &arguments.tensor)?;
    let target = Target::new(&arguments.output);
    let write = |out: &mut dyn Write| {
        let mut out = BufWriter::new(out);
        let read = deltaloom::read_tensor(&resolved, &arguments.tensor, arguments.rows.clone(), &mut out);
        read.map_err(|e| target::named(e, &target))?;
        out.flush().map_err(|e| target::writing(&target.name(), e))
    };
    match &target {
        Target::Stdout => write(&mut target::stdout_for_bytes(resolved.inputs())?)?,
        Target::Path(path) => {
            let mut file = NewFile::create(path, arguments.overwrite, resolved.inputs())?;
            write(file.file())?;
            file.commit()?;
        }
    }
    Ok(Answer::Yes)
}
