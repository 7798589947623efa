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

### Warnings

`pack`, `unpack`, `verify`, `diff`, `lineage`, `bench` and `estimate` have a list `warnings` of what is odd about their inputs. Each has a `kind`, and `index`, the path of an index of shards:

| kind | what is odd | keys |
|---|---|---|
| `missing_files` | the index names files that are not there | `count`, `names` (the first five) |
| `missing_tensors` | it names tensors that no file has, though their shards are there | `count`, `names` |
| `unreadable_index` | it cannot be read | `why` |

### pack, inspect

| key | value |
|---|---|
| `original_bytes` | size of the checkpoint's files |
| `packed_bytes` | size of the container |
| `ratio` | `original_bytes` / `packed_bytes` |
| `index_bytes` | what of the container is not payload: head, index with its tables and digests, trailer |
| `seconds`, `threads` | the time it took, and on how many threads; only `pack` |
| `format_version` | version of the container's format |
| `needs_base` | whether a base is needed to restore it |
| `bases` | a list of the bases that it names, each with its `name` and `digest` (32 hexadecimal digits) |
| `texts` | what was given with `--meta`, by key |
| `files` | paths of the checkpoint's files |
| `unread` | of a folder, files that may hold weights and are stored as they are: `files`, `bytes`, and `kinds` with a count each; absent where there are none; only `pack` |
| `predictors` | by kind of predictor: `count` of tensors, `bytes` of their payloads |
| `codecs` | by codec: `count` of chunks, `bytes` of their payloads |
| `tensors` | a list, in file order; an opaque file is one tensor with its path as its name |

Kinds of predictor are `zero`, `reference`, `identical`, `tied`, `cast`, `lowrank`, `adapter`, `blend`, `companion` and `adam`;
codecs are `same`, `constant`, `raw`, `planes`, `float`, `ulp`, `sparse`, `mixed`, `grid` and `scaled`. Each of `tensors` has:

| key | value |
|---|---|
| `name`, `dtype`, `shape` | as in the safetensors header |
| `predictor` | kind of predictor |
| `reference` | name of the reference in its base, the first of several; absent where there is none |
| `other_references` | names of the others; absent where there are none |
| `rule` | the numbers of a merge; absent for other predictions |
| `codec` | the codec of most of its bytes; `same` when it has none |
| `original_bytes`, `packed_bytes` | size of the tensor and of its payloads |
| `changed_fraction` | share of elements that differ from the prediction; null for predictor `zero` |

### pack --base-dir

The report of `pack` has these keys under `base_search`; with `--dry-run` they are all there is. Sizes are estimated from
samples, and shares are of bytes.

| key | value |
|---|---|
| `chosen` | path of the best candidate; null where none is good enough |
| `alone_ratio` | original over packed without a base |
| `least_changed_saving`, `least_identical_fraction` | one of the two makes a candidate good enough |
| `candidates` | a list, the best first |
| `skipped` | what could not be used: `path` and `why` |
| `seconds` | the time it took |

Each of `candidates` has:

| key | value |
|---|---|
| `path` | what to give as a base |
| `needs` | bases that a container rests on, to be given as well; absent where there are none |
| `estimated_ratio` | original over packed |
| `estimated_saving` | share of what packing alone takes that it saves |
| `estimated_changed_saving` | the same of the tensors that it does not have |
| `identical_fraction` | share in tensors that it has, also as a rounding of its own |
| `matched_fraction` | share in tensors of which it has one of the same place and shape |

### lab positions

| key | value |
|---|---|
| `source`, `seed` | pattern and its seed, or path of the file |
| `original_bytes`, `gaps` | size of the data and number of its set bits; 0 gaps where no method asked |
| `entropy_bytes`, `entropy_ratio`, `entropy_of` | of the `pattern`; of a file, `order 0` of its bytes |
| `threads`, `encode_seconds`, `total_seconds` | all methods beside each other, without and with checks |
| `best`, `fastest` | names of the smallest and of the one that encodes fastest |
| `methods` | a list of `method`, `group` (`published`, `ours`, `baseline`), `coded_bytes`, `container_bytes`, `is_raw`, `ratio`, `extract_seconds`, `compress_seconds`, `decompress_seconds`, `reconstruct_seconds`, `verify_seconds`, `encode_mb_per_second`, `decode_mb_per_second`, `verified`, and `fault` where it is not |

`coded_bytes` and `ratio` leave the header out, as published tables do; `container_bytes` is all that was read back. The seconds of a
method are processor time of one thread; `encode_seconds` and `total_seconds` are time on the wall.

### lab tpde

| key | value |
|---|---|
| `checkpoints` | paths as given |
| `rows` | a list of `method`, `form` (`exact`, `published`, `corrected`), `lossy`, `ratio`, `ratio_after_first`, `mean_ratio`, `published_ratio`, `published_mean_ratio`, `in_bytes`, `out_bytes` and `steps` |

Each of `steps` has `step`, `in_bytes`, `out_bytes`, `elems`, `kept_elems`, `kept_fraction`, `thresholds`, `max_error`, `relative_update_error`, `relative_state_error`, `left_out_bytes`, and where they
are known `fp32_bytes`, `published_bytes` and `loss`. With `--verify` it is a list of files with `path`, `step`, `lossless`, `checked`, `bound`, `max_error` and `faults`.

### series ls, log

| key | value |
|---|---|
| `location`, `options`, `newest` | where it is; `keyframe_every` and `max_chain`; its last step |
| `totals` | `steps`, `original_bytes`, `stored_bytes`, `keyframes`, `keyframe_original_bytes`, `keyframe_bytes`, `ratio_sum` |
| `ratio`, `delta_ratio`, `mean_delta_ratio` | all original bytes over all stored bytes; the same without keyframes; the mean of those steps' ratios |
| `steps` | a list of entries as docs/series.md has them, each with its `ratio` |

`series show` prints the first two rows; with `--step` an entry, and under `container` what `inspect` prints of it. `series add` prints an entry, `is_new`, and `container` if it is new. `series get` prints what
`unpack` prints.

### series health

| key | value |
|---|---|
| `rule` | the parameters of the warning rule |
| `steps` | a list of `step`, `reference`, `is_keyframe`, `ratio`, `bits_per_weight`, `changed_fraction`, `deviations` |
| `layers` | a list of `kind`, `name`, `elems`, `changed_fractions` (one for each step), `window_steps`, `identical_share`, `below_share`, `is_frozen`, `unchanged_since` |
| `warnings` | a list of `kind` (`more`, `less`, `nothing`, `everything`), `step`, `last_step`, `changed_fraction`, `expected_fraction`, `deviations` |

### series prune, repack, gc, verify

| key | value |
|---|---|
| `kept`, `dropped`, `repacked` | number of steps that are there now; the steps that were left out, and those that were packed again |
| `stored_bytes_before`, `stored_bytes` | size of all containers before and now; the latter not in a dry run |
| `removed`, `removed_bytes`, `too_young` | of gc: objects that are gone, their size, and those that nothing names but that are too young |
| `ok`, `deep`, `steps`, `faults` | of verify: whether nothing is wrong, whether every tensor was decoded, how many steps there are, and a line for each fault |

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
| `total` | all weights together; small files are left out |
| `tensors` | a list, by name; the small files of directories count as tensors of bytes |

`total` has:

| key | value |
|---|---|
| `weights`, `changed_weights` | weights that were compared, and those whose bits differ; of dtypes that are not known, bytes |
| `changed_fraction` | the latter over the former; null where nothing was compared |
| `relative_l2` | L2 norm of the difference over that of the first, of all floats; null where it is not a number |
| `only_a`, `only_b`, `retyped` | what could not be compared: `tensors`, `weights`, `bytes` |

Each of `tensors` has:

| key | value |
|---|---|
| `name` | its name |
| `status` | `identical`, `changed`, `only_a`, `only_b`, or `retyped` where dtype or shape differ |
| `dtype`, `shape` | of the second checkpoint where it has the tensor |
| `changed_fraction` | share of elements whose bits differ; null where they cannot be compared |
| `ulp_histogram` | elements by their distance in ULPs: the key is the largest distance of a bucket (0, 1, 2, 4, 8, ...); null where they cannot be compared |
| `relative_l2` | L2 norm of the difference over that of the first tensor; null where it is not a number |

### lineage

| key | value |
|---|---|
| `ancestors` | their paths |
| `findings` | a list, those of most bytes first: `finding` in words, how many `tensors`, their `bytes`, and `evidence`: the `key` of a number of the tensors, and its `least` and `most` (absent where nothing needs to be shown) |
| `tensors` | a list, in file order: `name`, `dtype`, `shape`, `bytes`, `kind`, and the keys of that kind |

| kind | what happened to the tensor | keys |
|---|---|---|
| `identical` | nothing | `ancestor` |
| `tied` | it equals another one | `tensor` |
| `cast` | rounded from an F32 tensor | `ancestor` (absent where that is in the same checkpoint), `tensor` |
| `blend` | a linear combination | `parts`, a list of `ancestor` and `weight`; `residual` |
| `rescaled` | a multiple | `ancestor`, `factor`, `residual` |
| `low_rank` | a matrix of low rank was added | `ancestor`, `rank`, `residual`, `relative_l2` |
| `sparse` | fewer than a third of the elements changed | `ancestor`, `changed_fraction`, `relative_l2` |
| `drift` | most of them did | `ancestor`, `changed_fraction`, `relative_l2`, `correlation` |
| `unrelated` | its nearest ancestor says nothing about it | `ancestor`, `correlation`, `bits_per_element`: alone and given the ancestor, estimated (null where dtypes differ) |
| `new` | no ancestor has one of its place and shape | none |

`residual` is the L2 norm of what the finding does not explain over that of rounding to the dtype: about 1 where nothing
but rounding is left.

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
| 0 | done; `verify` found nothing wrong, `diff` found no difference, `--dry-run` found a base |
| 1 | the answer is no: `verify` found something wrong, `diff` found a difference, `series health` has a warning, `--dry-run` found no base, an experiment missed its tolerance |
| 2 | refused: wrong usage, a wrong base or none, corrupt or unsupported input, a name that a container or series does not have, a target that exists or is protected |
| 3 | a named file (a base too), series or object is not there or cannot be read |
| 4 | cannot write: the disk is full, the permission or the folder is missing |
| 5 | a store cannot be reached or denies access |
| 130, 143, 129 | stopped by SIGINT (Ctrl-C), SIGTERM or SIGHUP |

After any of them but 0 and 1, nothing is left under the target's name that was not there before, and a file that was being changed in
place can be finished. A pipe that its reader closes, such as `| head`, is no error.

## Errors as JSON

With `--json`, an error is one JSON value on standard output, and a text on standard error as always:

```json
{\"error\": {\"kind\": \"wrong_base\", \"message\": \"...\", \"hint\": \"...\", \"path\": \"tuned.loom\", \"tensor\": \"norm\"}}
```

`hint`, `path` and `tensor` are null where there is none. Later versions may add kinds:

| `kind` | exit code |
|---|---|
| `usage`, `no_such_name`, `corrupt`, `truncated`, `unsupported`, `limit_exceeded`, `wrong_base`, `no_useful_base`, `exists`, `protected`, `changed` (while it was read), `unfinished` (a change in place), `step_taken`, `step_differs`, `store_settings` | 2 |
| `not_found`, `unreadable` | 3 |
| `cannot_write`, `disk_full` | 4 |
| `store_unreachable`, `store_denied` | 5 |
| `interrupted` | 130, 143, 129 |

Where the result itself goes to standard output (`-o -`), the report of `--json` goes to standard error.

## Progress as JSON

With `--progress json`, lines such as this go to standard error, about five a second, and one at the end of each piece of work:

```json
{\"progress\": {\"verb\": \"packing\", \"done_bytes\": 1048576, \"total_bytes\": 25085456, \"seconds\": 0.1}}
```

## Standard streams, links and folders

`-` as an output is standard output, for one file: a container, a restored file, a tensor, a page. Raw bytes do not go to a terminal. Inputs
are never read from standard input, since they are read at any place.

No output takes the place of a file that the command reads, whatever path leads to it, nor lies inside a series that it reads; `--overwrite`
changes nothing about that. `--overwrite` replaces a regular file, or the one that a link leads to, and nothing else. In a folder it replaces
the files that are restored and leaves all others.

A file beside which `.NAME.loom-journal` lies was being changed by `unpack --in-place`: no command reads it until the same command has finished it.
Temporary files, `.deltaloom-*.tmp`, are locked while they grow; those of a process that was killed are removed by the next command that writes to the folder.
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
