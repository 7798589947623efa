//! The methods and their names; the published ones are as published. What they do is in
//! [`super::encode`] and [`super::decode`].

use deltaloom::{Error, Result};

/// General-purpose compression.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// zlib, level 9.
    Zlib,
    /// LZ4 in frames.
    Lz4,
    /// zstd, level 3.
    Zstd3,
    /// zstd, level 19; published only for the data itself.
    Zstd19,
}

impl Backend {
    /// The backends of the 17 combinations.
    const PUBLISHED: [Self; 3] = [Self::Zlib, Self::Lz4, Self::Zstd3];

    fn name(self) -> &'static str {
        match self {
            Self::Zlib => "zlib",
            Self::Lz4 => "lz4",
            Self::Zstd3 => "zstd",
            Self::Zstd19 => "zstd-19",
        }
    }
}

/// Turns gaps into bytes in a published combination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Coder {
    /// Compresses the gaps as little-endian numbers of 32 bits.
    Words(Backend),
    /// Golomb with divisor 256, of the gap itself.
    Golomb,
    /// Elias delta.
    EliasDelta,
}

/// Our own codings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Own {
    /// Rice of gap - 1, with a parameter per segment.
    Rice,
    /// Golomb of gap - 1, with a divisor per segment.
    Golomb,
    /// rANS of gap - 1 as tokens, with a table per segment.
    Rans,
    /// Positions of nonzero bytes by Rice, and those bytes.
    ByteRice,
    /// A bit for each byte, and the nonzero bytes.
    Bitmap,
    /// Lengths of runs of zero and nonzero bytes, and the nonzero bytes.
    RunLength,
}

/// A row of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// One of the 17: a coder of gaps, and compression of its output.
    Published(Coder, Option<Backend>),
    /// One of ours.
    Own(Own),
    /// Compression of the data itself.
    Baseline(Backend),
}

const OWN: [Own; 6] = [Own::Rice, Own::Golomb, Own::Rans, Own::ByteRice, Own::Bitmap, Own::RunLength];
const BASELINES: [Backend; 4] = [Backend::Zlib, Backend::Lz4, Backend::Zstd3, Backend::Zstd19];

impl Method {
    /// The 17 published combinations.
    #[must_use]
    pub fn published() -> Vec<Self> {
        let words = Backend::PUBLISHED.map(Coder::Words);
        let coders = [Coder::Golomb, Coder::EliasDelta];
        let alone = words.into_iter().chain(coders).map(|coder| Self::Published(coder, None));
        let pairs = coders.into_iter().chain(words).flat_map(|coder| {
            let others = Backend::PUBLISHED.into_iter().filter(move |then| coder != Coder::Words(*then));
            others.map(move |then| Self::Published(coder, Some(then)))
        });
        alone.chain(pairs).collect()
    }

    /// Our own codings.
    #[must_use]
    pub fn ours() -> Vec<Self> {
        OWN.map(Self::Own).to_vec()
    }

    /// General-purpose compression of the data itself.
    #[must_use]
    pub fn baselines() -> Vec<Self> {
        BASELINES.map(Self::Baseline).to_vec()
    }

    /// All methods, in the order of the table.
    #[must_use]
    pub fn all() -> Vec<Self> {
        [Self::published(), Self::ours(), Self::baselines()].concat()
    }

    /// The methods with a name: `all`, `published`, `ours`, `baselines`, or one.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] with the available names.
    pub fn named(name: &str) -> Result<Vec<Self>> {
        match name {
            "all" => return Ok(Self::all()),
            "published" => return Ok(Self::published()),
            "ours" => return Ok(Self::ours()),
            "baselines" => return Ok(Self::baselines()),
            _ => {}
        }
        match Self::all().into_iter().find(|method| method.name() == name) {
            Some(method) => Ok(vec![method]),
            None => {
                let names: Vec<String> = Self::all().into_iter().map(Self::name).collect();
                let names = names.join(", ");
                Err(Error::InvalidArgument(format!(
                    "unknown method {name:?}; expected all, published, ours, baselines, {names}"
                )))
            }
        }
    }

    /// Its name in tables.
    #[must_use]
    pub fn name(self) -> String {
        let own = |own| match own {
            Own::Rice => "rice",
            Own::Golomb => "golomb-fit",
            Own::Rans => "rans",
            Own::ByteRice => "bytes-rice",
            Own::Bitmap => "bitmap",
            Own::RunLength => "run-length",
        };
        match self {
            Self::Published(coder, then) => {
                let coder = match coder {
                    Coder::Words(backend) => backend.name(),
                    Coder::Golomb => "golomb",
                    Coder::EliasDelta => "elias_delta",
                };
                then.map_or_else(|| coder.to_owned(), |then| format!("{coder}+{}", then.name()))
            }
            Self::Own(method) => own(method).to_owned(),
            Self::Baseline(Backend::Zlib) => "data-zlib-9".to_owned(),
            Self::Baseline(Backend::Zstd3) => "data-zstd-3".to_owned(),
            Self::Baseline(backend) => format!("data-{}", backend.name()),
        }
    }

    /// `published`, `ours` or `baseline`.
    #[must_use]
    pub fn group(self) -> &'static str {
        match self {
            Self::Published(..) => "published",
            Self::Own(_) => "ours",
            Self::Baseline(_) => "baseline",
        }
    }

    /// Its byte in a container: the index in [`Self::all`], to which new ones are appended.
    pub(super) fn wire_id(self) -> u8 {
        let place = Self::all().iter().position(|method| *method == self);
        place.and_then(|place| u8::try_from(place).ok()).unwrap_or(u8::MAX)
    }

    pub(super) fn from_wire_id(id: u8) -> Option<Self> {
        Self::all().get(usize::from(id)).copied()
    }
}

/// The methods without duplicates, in the order of the table.
pub(super) fn unique(methods: &[Method]) -> Vec<Method> {
    Method::all().into_iter().filter(|method| methods.contains(method)).collect()
}
