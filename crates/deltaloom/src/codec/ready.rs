//! Table sets ready for encoding or decoding, with the map from keys to tables.
//! It does not choose tables; [`crate::plan`] does.

use std::sync::Arc;

use deltaloom_kernels::history::{self, CellMap};
use deltaloom_kernels::keys::{self, KEYS};
use deltaloom_kernels::rans::{DecodeTables, EncodeTables};

use crate::entropy::table::TableSet;
use crate::error::{Error, Result};

/// A table set ready for one direction, with the map from keys to tables.
#[derive(Debug)]
pub(crate) struct ReadyTables<K> {
    pub(super) coder: K,
    pub(super) count: usize,
    pub(super) set: TableSet,
    /// Of a set for histories only.
    cells: Option<Box<CellMap>>,
}

pub(crate) type Encoder = Arc<ReadyTables<EncodeTables>>;
pub(crate) type Decoder = Arc<ReadyTables<DecodeTables>>;

pub(crate) fn encoder(set: &TableSet) -> Encoder {
    Arc::new(ReadyTables::new(EncodeTables::new(&set.tables), set))
}

pub(crate) fn decoder(set: &TableSet) -> Result<Decoder> {
    let coder = DecodeTables::new(&set.tables)
        .ok_or_else(|| Error::corrupt("the frequencies of a table have a wrong sum"))?;
    Ok(Arc::new(ReadyTables::new(coder, set)))
}

impl<K> ReadyTables<K> {
    fn new(coder: K, set: &TableSet) -> Self {
        let cells = (!set.cells.is_empty()).then(|| set.cell_map());
        Self { coder, count: set.tables.len(), set: set.clone(), cells }
    }

    /// Turns keys into tables. `classes` has one class per key in a history, and is `None`
    /// elsewhere.
    pub(super) fn map(&self, keys: &mut [u8], classes: Option<&[u8]>) -> Result<()> {
        match (classes, &self.cells) {
            (None, None) => keys::map_keys(keys, &self.dense_map()),
            (Some(classes), Some(cells)) if classes.len() == keys.len() => {
                history::map_cells(keys, classes, cells);
            }
            _ => return Err(Error::corrupt("a group needs a history, or tables for one, that do not exist")),
        }
        Ok(())
    }

    fn dense_map(&self) -> [u8; KEYS] {
        self.set.key_map(0)
    }

    pub(super) fn sparse_map(&self) -> Result<[u8; KEYS]> {
        if self.count < 2 {
            return Err(Error::corrupt("a sparse chunk needs a gap table and at least one other table"));
        }
        Ok(self.set.key_map(1))
    }
}
