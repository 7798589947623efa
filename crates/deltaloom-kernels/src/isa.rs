//! Which instruction set the kernels run on: detected once, or forced by `DELTALOOM_ISA` for tests.
//! Every path computes the same bits.

use std::sync::OnceLock;

/// Instruction sets that kernels are built for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// What every machine of the target has.
    Scalar,
    /// AVX2 with the bit manipulation instructions of its time.
    Avx2,
}

impl Isa {
    /// Word for reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Scalar => "scalar",
            Self::Avx2 => "avx2",
        }
    }
}

/// The instruction set in use. `DELTALOOM_ISA=scalar` or `avx2` lowers it, never raises it above what the machine has.
#[must_use]
pub fn isa() -> Isa {
    static CHOSEN: OnceLock<Isa> = OnceLock::new();
    *CHOSEN.get_or_init(|| match std::env::var("DELTALOOM_ISA").as_deref() {
        Ok("scalar") => Isa::Scalar,
        _ => detected(),
    })
}

#[cfg(target_arch = "x86_64")]
fn detected() -> Isa {
    let has_all = is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("bmi1")
        && is_x86_feature_detected!("bmi2")
        && is_x86_feature_detected!("lzcnt")
        && is_x86_feature_detected!("popcnt");
    if has_all { Isa::Avx2 } else { Isa::Scalar }
}

#[cfg(not(target_arch = "x86_64"))]
fn detected() -> Isa {
    Isa::Scalar
}

/// A public kernel that is compiled twice from one `#[inline(always)]` body: for every machine, and for AVX2. Which one runs is decided once per call.
macro_rules! per_isa {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $type:ty),* $(,)?) $(-> $result:ty)? = $body:ident;) => {
        $(#[$meta])*
        $vis fn $name($($arg: $type),*) $(-> $result)? {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,bmi1,bmi2,lzcnt,popcnt")]
                fn with_avx2($($arg: $type),*) $(-> $result)? {
                    $body($($arg),*)
                }
                if $crate::isa::isa() >= $crate::isa::Isa::Avx2 {
                    // SAFETY: `isa` gives Avx2 only after it has detected every feature that `with_avx2` enables.
                    #[expect(unsafe_code, reason = "calling a function with detected target features")]
                    return unsafe { with_avx2($($arg),*) };
                }
            }
            $body($($arg),*)
        }
    };
}
pub(crate) use per_isa;
