//! The instruction set that the kernels use: detected once, or lowered by `DELTALOOM_ISA` for tests
//! and measurements. Every path computes the same bits.

use std::sync::atomic::{AtomicUsize, Ordering};

/// Instruction sets that kernels are built for. Each includes those before it on the same processor
/// family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// The baseline of the target.
    Scalar,
    /// AVX2 with the bit manipulation instructions of its time.
    Avx2,
    /// AVX-512 with byte permutes and compression (VBMI, VBMI2): Ice Lake, Zen 4 and later.
    Avx512,
}

impl Isa {
    /// The name that `DELTALOOM_ISA` accepts. On aarch64 the baseline includes NEON, and its name
    /// is still `scalar`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Scalar => "scalar",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
        }
    }

    /// Every instruction set that this machine has, smallest first.
    #[must_use]
    pub fn available() -> Vec<Self> {
        LADDER.into_iter().filter(|isa| *isa <= detected()).collect()
    }
}

/// What [`isa`] returns, as an index into [`LADDER`] plus 1; 0 before the first call.
static IN_USE: AtomicUsize = AtomicUsize::new(0);
const LADDER: [Isa; 3] = [Isa::Scalar, Isa::Avx2, Isa::Avx512];

/// The instruction set in use. `DELTALOOM_ISA=scalar`, `avx2` or `avx512` lowers it, but never
/// raises it above what the machine has.
#[must_use]
pub fn isa() -> Isa {
    match IN_USE.load(Ordering::Relaxed).checked_sub(1) {
        Some(place) => LADDER[place],
        None => lower_to(match std::env::var("DELTALOOM_ISA").as_deref() {
            Ok("scalar") => Isa::Scalar,
            Ok("avx2") => Isa::Avx2,
            _ => Isa::Avx512,
        }),
    }
}

/// Uses `wanted` from now on, or the best that the machine has if that is less; for measurements.
/// Returns the instruction set now in use.
pub fn lower_to(wanted: Isa) -> Isa {
    let isa = wanted.min(detected());
    IN_USE.store(isa as usize + 1, Ordering::Relaxed);
    isa
}

#[cfg(target_arch = "x86_64")]
fn detected() -> Isa {
    let has_avx2 = is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("bmi1")
        && is_x86_feature_detected!("bmi2")
        && is_x86_feature_detected!("lzcnt")
        && is_x86_feature_detected!("popcnt");
    let has_avx512 = is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512cd")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512vbmi")
        && is_x86_feature_detected!("avx512vbmi2");
    match (has_avx2, has_avx512) {
        (true, true) => Isa::Avx512,
        (true, false) => Isa::Avx2,
        _ => Isa::Scalar,
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn detected() -> Isa {
    Isa::Scalar
}

/// Runs a test on every instruction set of this machine, while no other test changes it.
#[cfg(test)]
pub(crate) fn for_each_isa<E>(mut test: impl FnMut(Isa) -> Result<(), E>) -> Result<(), E> {
    static ALONE: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let _alone = ALONE.lock();
    let before = isa();
    let result = Isa::available().into_iter().try_for_each(|isa| test(lower_to(isa)));
    lower_to(before);
    result
}

/// Compiles a kernel for every instruction set from one `#[inline(always)]` body. Each call decides
/// once which version runs.
macro_rules! per_isa {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $type:ty),* $(,)?) $(-> $result:ty)? = $body:path;) => {
        $(#[$meta])*
        $vis fn $name($($arg: $type),*) $(-> $result)? {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,bmi1,bmi2,lzcnt,popcnt")]
                fn with_avx2($($arg: $type),*) $(-> $result)? {
                    $body($($arg),*)
                }
                if $crate::isa::isa() >= $crate::isa::Isa::Avx2 {
                    // SAFETY: `isa` returns Avx2 or more only if it has detected every feature that
                    // `with_avx2` enables.
                    #[expect(unsafe_code, reason = "calling a function with detected target features")]
                    return unsafe { with_avx2($($arg),*) };
                }
            }
            $body($($arg),*)
        }
    };
}
pub(crate) use per_isa;
