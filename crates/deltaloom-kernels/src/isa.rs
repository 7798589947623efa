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
    /// The same with Intel's tile products of BF16 (AMX): Sapphire Rapids and later, on Linux.
    Amx,
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
            Self::Amx => "amx",
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
const LADDER: [Isa; 4] = [Isa::Scalar, Isa::Avx2, Isa::Avx512, Isa::Amx];

/// The instruction set in use. `DELTALOOM_ISA=scalar`, `avx2`, `avx512` or `amx` lowers it, but
/// never raises it above what the machine has.
#[must_use]
pub fn isa() -> Isa {
    match IN_USE.load(Ordering::Relaxed).checked_sub(1) {
        Some(place) => LADDER[place],
        None => lower_to(match std::env::var("DELTALOOM_ISA").as_deref() {
            Ok("scalar") => Isa::Scalar,
            Ok("avx2") => Isa::Avx2,
            Ok("avx512") => Isa::Avx512,
            _ => Isa::Amx,
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
    static DETECTED: std::sync::OnceLock<Isa> = std::sync::OnceLock::new();
    *DETECTED.get_or_init(detect)
}

#[cfg(target_arch = "x86_64")]
fn detect() -> Isa {
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
        (true, true) if tiles::are_allowed() => Isa::Amx,
        (true, true) => Isa::Avx512,
        (true, false) => Isa::Avx2,
        _ => Isa::Scalar,
    }
}

/// Whether this process may use tiles. Rust cannot tell yet, and Linux wants to be asked, because
/// tiles make the state of every thread larger.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod tiles {
    use std::arch::asm;
    use std::arch::x86_64::{__cpuid, __cpuid_count};

    /// In leaf 7 of CPUID: tiles, and their products of BF16.
    const TILES: u32 = 1 << 24;
    const BF16: u32 = 1 << 22;
    /// In leaf 1 of CPUID: the system has enabled states, and `xgetbv` tells which.
    const OSXSAVE: u32 = 1 << 27;
    /// The states of tiles: their configuration and their data.
    const STATES: u32 = 0b11 << 17;
    /// `arch_prctl`, and its request for a state that is not there from the start.
    const ARCH_PRCTL: usize = 158;
    const REQUEST_STATE: usize = 0x1023;
    const TILE_DATA: usize = 18;

    pub(super) fn are_allowed() -> bool {
        if __cpuid(0).eax < 7 || __cpuid(1).ecx & OSXSAVE == 0 {
            return false;
        }
        let has_tiles = __cpuid_count(7, 0).edx & (TILES | BF16) == TILES | BF16;
        has_tiles && enabled_states() & STATES == STATES && is_granted()
    }

    fn enabled_states() -> u32 {
        let states: u32;
        #[expect(unsafe_code, reason = "an instruction without a function")]
        // SAFETY: the caller has seen that this instruction exists. It only writes two registers.
        unsafe {
            asm!("xgetbv", in("ecx") 0, out("eax") states, out("edx") _, options(nomem, nostack, preserves_flags));
        }
        states
    }

    fn is_granted() -> bool {
        let result: isize;
        #[expect(unsafe_code, reason = "a request to the system")]
        // SAFETY: this request reads and writes no memory of the process. It allows an instruction.
        unsafe {
            asm!(
                "syscall",
                inlateout("rax") ARCH_PRCTL => result,
                in("rdi") REQUEST_STATE,
                in("rsi") TILE_DATA,
                lateout("rcx") _,
                lateout("r11") _,
                options(nostack),
            );
        }
        result == 0
    }
}

#[cfg(all(target_arch = "x86_64", not(target_os = "linux")))]
mod tiles {
    pub(super) fn are_allowed() -> bool {
        false
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
