//! A tensor that is an F32 tensor, its master, rounded to BF16 or F16.
//! Masters of the same checkpoint come before those of bases. Both may have any name.

use rayon::prelude::*;

use super::equality;
use super::fingerprints::{Fingerprints, print};
use super::subject::Subject;
use crate::bases::{Base, TensorSource};
use crate::container::Digest;
use crate::error::Result;
use crate::predict::cast;
use crate::progress::Progress;
use crate::sample;
use crate::tensor::{DType, TensorInfo};

/// The dtypes that masters are rounded to.
const NARROW: [DType; 2] = [DType::BF16, DType::F16];

/// An F32 tensor that was rounded.
#[derive(Clone, Copy)]
pub(crate) enum Master<'a> {
    /// The tensor of the same checkpoint with this number.
    Own(usize),
    /// A tensor of the base with this number.
    OfBase(usize, &'a TensorSource),
}

/// Whether a tensor may be a rounded one.
pub(crate) fn applies(info: &TensorInfo) -> bool {
    cast::is_target(&info.dtype)
}

/// All tensors that may be masters.
pub(crate) struct Masters<'a> {
    own: Fingerprints<usize>,
    of_bases: Fingerprints<(usize, &'a TensorSource)>,
}

impl<'a> Masters<'a> {
    /// Reads samples of the F32 tensors of the bases if there is a tensor that may be rounded.
    pub(crate) fn new(
        subjects: &[Subject<'_>],
        samples: &[Vec<u8>],
        bases: impl Iterator<Item = &'a Base>,
    ) -> Result<Self> {
        let is_needed = subjects.iter().any(|subject| applies(subject.info()));
        let is_single = |info: &TensorInfo| is_needed && info.dtype == DType::F32;
        let own: Vec<usize> = (0..subjects.len()).filter(|i| is_single(subjects[*i].info())).collect();
        let own: Vec<_> =
            own.into_par_iter().flat_map_iter(|i| prints(subjects[i].info(), &samples[i], i)).collect();
        let of_bases: Vec<(usize, &TensorSource)> = bases
            .enumerate()
            .flat_map(|(number, base)| base.tensors().iter().map(move |source| (number, source)))
            .filter(|(_, source)| is_single(source.info()))
            .collect();
        let printed = |(number, source): &(usize, &'a TensorSource)| {
            Ok(prints(source.info(), &sample::of(source)?, (*number, *source)))
        };
        let of_bases: Vec<_> = of_bases.par_iter().map(printed).collect::<Result<_>>()?;
        Ok(Self { own: Fingerprints::new(own), of_bases: Fingerprints::new(of_bases.into_iter().flatten()) })
    }

    /// The first master that tensor number `i` is rounded from, and the tensor's digest.
    pub(crate) fn prove(
        &self,
        i: usize,
        subjects: &[Subject<'_>],
        samples: &[Vec<u8>],
        progress: &dyn Progress,
    ) -> Result<Option<(Master<'a>, Digest)>> {
        let (subject, sample) = (subjects[i], &samples[i]);
        let info = subject.info();
        if !applies(info) {
            return Ok(None);
        }
        let own = self.own.alike(info, sample).map(|other| (Master::Own(other), subjects[other]));
        let of_bases = self.of_bases.alike(info, sample);
        let of_bases =
            of_bases.map(|(number, source)| (Master::OfBase(number, source), Subject::Source(source)));
        for (master, source) in own.chain(of_bases) {
            let rounded =
                |offset: u64, len: usize| Ok(cast::round(&info.dtype, &source.read(2 * offset, 2 * len)?));
            if let Some(digest) = equality::prove(subject, rounded, progress)? {
                return Ok(Some((master, digest)));
            }
        }
        Ok(None)
    }
}

/// The fingerprints of a master after rounding.
fn prints<T: Copy>(info: &TensorInfo, sample: &[u8], master: T) -> [(u64, T); 2] {
    NARROW.map(|dtype| (print(&info.shape, &dtype, &cast::round(&dtype, sample)), master))
}
