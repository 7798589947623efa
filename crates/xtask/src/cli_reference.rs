//! docs/cli.md: every command and option as `--help` prints them, the JSON keys and the exit codes.
//! The texts of the commands are defined in deltaloom-cli.

use anyhow::Result;

use crate::{Mode, settle};

const HEAD: &str = "# The program `deltaloom`

Made by `just cli-reference` from the definitions behind `--help`; not edited by hand. Data goes to standard output,
everything else to standard error. The words are those of [terminology.md](terminology.md).

";

const TAIL: &str = "## JSON

With `--json` a command prints one JSON value on standard output. These keys are stable: later versions may add keys
but neither remove one nor change its meaning. Sizes are in bytes.

### pack, inspect

| key | value |
|---|---|
| `original_bytes` | size of the checkpoint's files |
| `packed_bytes` | size of the container |
| `ratio` | `original_bytes` / `packed_bytes` |
| `index_bytes` | what of the container is not payload: head, index with its tables and digests, trailer |
| `seconds`, `threads` | the time it took, and on how many threads; only `pack` |
| `files` | paths of the checkpoint's files |
| `predictors` | by kind of predictor: `count` of tensors, `bytes` of their payloads |
| `codecs` | by codec: `count` of chunks, `bytes` of their payloads |
| `tensors` | a list, in file order; an opaque file is one tensor with its path as its name |

Kinds of predictor are `zero`, `reference`, `identical`, `tied`, `cast`, `lowrank`, `adapter`, `blend` and `companion`;
codecs are `same`, `constant`, `raw`, `planes`, `float`, `ulp`, `sparse`, `mixed`, `grid` and `scaled`. Each of `tensors` has:

| key | value |
|---|---|
| `name`, `dtype`, `shape` | as in the safetensors header |
| `predictor` | kind of predictor |
| `reference` | name of the reference in its base; absent where there is none |
| `codec` | the codec of most of its bytes; `same` when it has none |
| `original_bytes`, `packed_bytes` | size of the tensor and of its payloads |
| `changed_fraction` | share of elements that differ from the prediction; null for predictor `zero` |

### unpack

| key | value |
|---|---|
| `original_bytes`, `packed_bytes` | size of the files restored and of the container |
| `files` | number of files restored |
| `seconds`, `threads` | the time it took, and on how many threads |

### unpack --in-place

| key | value |
|---|---|
| `original_bytes`, `packed_bytes` | size of the file and of the container |
| `written_bytes` | how much of the file was written |
| `checked_tensors` | number of tensors that were compared with their digests |
| `already_applied` | whether the file was the fine-tune already, so that nothing was written |
| `resumed` | whether an earlier run was cut short and this one went on with it |
| `seconds`, `threads` | the time it took, and on how many threads |

### verify

| key | value |
|---|---|
| `ok` | whether nothing is wrong |
| `checked` | `checksums` of the stored bytes, or also `digests` of the decoded tensors |
| `tensors`, `chunks` | how many the container has |
| `faults` | what is wrong, a text each |

### diff

| key | value |
|---|---|
| `identical` | whether all tensors are the same, bit for bit |
| `tensors` | a list, by name; the small files of directories count as tensors of bytes |

Each of `tensors` has:

| key | value |
|---|---|
| `name` | its name |
| `status` | `identical`, `changed`, `only_a`, `only_b`, or `retyped` where dtype or shape differ |
| `dtype`, `shape` | of the second checkpoint where it has the tensor |
| `changed_fraction` | share of elements whose bits differ; null where they cannot be compared |
| `ulp_histogram` | elements by their distance in ULPs: the key is the largest distance of a bucket (0, 1, 2, 4, 8, ...); null where they cannot be compared |
| `relative_l2` | L2 norm of the difference over that of the first tensor; null where it is not a number |

### bench

| key | value |
|---|---|
| `deltaloom` | version of the program |
| `machine` | `cpu` by the name of its maker, `cores`, the `isa` that deltaloom's loops run on (`scalar`, `avx2`, `avx512`), `os` |
| `file`, `bases` | as they were given |
| `dtype_bytes` | bytes of tensors by dtype; small files count as `U8` |
| `original_bytes` | size of the checkpoint's files, of which all rates are |
| `threads` | threads of deltaloom; baselines have one |
| `rounds` | rounds that were counted |
| `rows` | a list, in the order of the table |

Each of `rows` has:

| key | value |
|---|---|
| `name` | as `--only` takes it |
| `packed_bytes` | of deltaloom, size of the container; of a baseline, all that it wrote, without the lengths that a file would need |
| `encode_seconds`, `decode_seconds` | the time of each round, in order |

What is timed, and why these baselines, is in [ADR 0014](adr/0014-bench-baselines.md).

## Exit codes

| code | meaning |
|---|---|
| 0 | done; `verify` found nothing wrong, `diff` found no difference |
| 1 | `verify` found something wrong, or `diff` found a difference |
| 2 | failed: bad arguments, bad input, or the system refused; nothing is left under the target's name, and a file that was being changed in place can be finished |
";

/// Writes or checks docs/cli.md.
///
/// # Errors
/// What would change, in check mode; what writing gives.
pub fn run(mode: Mode) -> Result<()> {
    // Help texts have spaces at the ends of lines.
    let commands: String =
        deltaloom_cli::reference().lines().map(|line| format!("{}\n", line.trim_end())).collect();
    let page = format!("{HEAD}{commands}{TAIL}");
    settle(mode, "docs/cli.md", page.as_bytes(), "cli-reference")
}
