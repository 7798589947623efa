//! Floats by the distance of their magnitude from the expected one; docs/format.md section 9.1.
//! [`super::float`] codes the result.

use deltaloom_kernels::fields::FieldSplit;
use deltaloom_kernels::rans::Contexts;
use deltaloom_kernels::scaled::Expectation;

use super::ulp::read_row_scales;
use super::{ChunkInput, ChunkShape, Decoder, Encoder, GroupScales, float};
use crate::entropy::block::Lanes;
use crate::entropy::bytes::ByteReader;
use crate::entropy::rice;
use crate::error::{Error, Result};
use crate::scratch::Scratch;
use crate::tensor::ChunkGrid;

/// How the magnitudes of a group are predicted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MagnitudeRule {
    /// Slope over the prediction's magnitude, in sixteenths.
    pub(crate) slope: u8,
    /// Without signs, all elements have a top bit of 0.
    pub(crate) has_signs: bool,
    pub(crate) scales: GroupScales,
}

impl MagnitudeRule {
    fn split(&self, split: FieldSplit) -> FieldSplit {
        if self.has_signs { split } else { split.without_signs() }
    }

    pub(super) fn push_to(&self, meta: &mut Vec<u8>) {
        meta.extend([self.slope, self.has_signs.into()]);
        self.scales.push_to(meta);
    }

    pub(super) fn parse(meta: &mut ByteReader<'_>, grid: &ChunkGrid) -> Result<Self> {
        let slope = meta.u8()?;
        let has_signs = match meta.u8()? {
            0 => false,
            1 => true,
            other => return Err(Error::corrupt(format!("sign mode {other} does not exist"))),
        };
        Ok(Self { slope, has_signs, scales: GroupScales::parse(meta, grid)? })
    }

    /// The rule for a chunk; `None` for number types without one.
    pub(crate) fn expectation<'a>(
        &'a self,
        shape: &ChunkShape,
        row_scales: &'a [i32],
    ) -> Option<Expectation<'a>> {
        let cols = self.scales.cols.as_deref().unwrap_or_default();
        Expectation::new(shape.number, shape.cols, self.slope, self.scales.offset, row_scales, cols)
    }
}

pub(super) fn encode(
    input: &ChunkInput<'_>,
    tables: &Encoder,
    split: FieldSplit,
    rule: &MagnitudeRule,
) -> Option<Vec<u8>> {
    let expectation = rule.expectation(&input.shape, input.row_scales)?;
    let split = rule.split(split);
    let mut relative = Scratch::of_len(input.target.len());
    expectation.subtract(input.target, input.prediction, &mut relative);
    let mut payload = input.empty_payload();
    if rule.scales.has_rows {
        rice::push_scales(&mut payload, input.row_scales);
    }
    let lanes = Lanes::choose(input.shape.elems(), input.estimated_bytes);
    float::push(&mut payload, tables, Contexts::Single, lanes, split, &relative);
    Some(payload)
}

pub(super) fn decode(
    shape: &ChunkShape,
    tables: &Decoder,
    split: FieldSplit,
    rule: &MagnitudeRule,
    payload: &[u8],
    values: &mut [u8],
) -> Result<()> {
    let mut reader = ByteReader::new(payload, "a scaled chunk");
    let row_scales = read_row_scales(&mut reader, shape, &rule.scales)?;
    let not_allowed = || Error::corrupt("scaled coding is not defined for this dtype");
    let expectation = rule.expectation(shape, &row_scales).ok_or_else(not_allowed)?;
    let mut relative = Scratch::of_len(values.len());
    float::read(&mut reader, tables, Contexts::Single, rule.split(split), &mut relative)?;
    reader.finish()?;
    expectation.add(&relative, values);
    Ok(())
}
