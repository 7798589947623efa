//! Runs the program in a folder of its own, on small checkpoints made here and on the bundled
//! weights.
#![allow(dead_code, reason = "every test file uses a part of it")]
#![expect(clippy::unwrap_used, reason = "a helper that fails should fail the test")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// No command of these tests takes nearly as long; one that waits for ever must fail and not hang.
const PATIENCE: Duration = Duration::from_secs(120);

/// How a run of the program ended.
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) out: Vec<u8>,
    pub(crate) err: String,
}

impl Ended {
    fn new(output: Output) -> Self {
        let err = String::from_utf8(output.stderr).unwrap();
        assert!(!err.contains("panicked"), "{err}");
        Self { code: output.status.code(), out: output.stdout, err }
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.out).unwrap()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.out).unwrap()
    }
}

/// A new folder in which the program runs.
pub(crate) struct Scratch(tempfile::TempDir);

impl Scratch {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// With copies of bundled weights: `base`, `ft_bf16`, `ft_master`, `ft_lora_merged`.
    pub(crate) fn with_assets(names: &[&str]) -> Self {
        let scratch = Self::new();
        for name in names {
            scratch.write(&format!("{name}.safetensors"), &asset(name));
        }
        scratch
    }

    /// With `base.safetensors`, the fine-tune `tuned.safetensors`, and the latter packed as
    /// `tuned.loom`.
    pub(crate) fn with_small_pair() -> Self {
        let scratch = Self::new();
        let words = |salt: u16| (0..3000u16).flat_map(move |i| (0x3c00 + i % 700 + salt).to_le_bytes());
        let file = |salt: u16| {
            let weights: Vec<u8> =
                words(0).zip(words(salt)).map(|(a, b)| if a % 3 == 0 { b } else { a }).collect();
            safetensors(&[("norm", "BF16", &[8], vec![0x3f; 16]), ("weight", "BF16", &[60, 50], weights)])
        };
        scratch.write("base.safetensors", &file(0));
        scratch.write("tuned.safetensors", &file(2));
        scratch.ok("pack tuned.safetensors --base base.safetensors -o tuned.loom");
        scratch
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    pub(crate) fn write(&self, name: &str, bytes: &[u8]) {
        let path = self.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    pub(crate) fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path().join(name)).unwrap()
    }

    /// Everything in the folder: links and folders by name, files with their bytes.
    pub(crate) fn tree(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut tree = BTreeMap::new();
        let mut folders = vec![self.path().to_path_buf()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                let kind = fs::symlink_metadata(&path).unwrap().file_type();
                let bytes =
                    if kind.is_file() { fs::read(&path).unwrap() } else { format!("{kind:?}").into_bytes() };
                if kind.is_dir() {
                    folders.push(path.clone());
                }
                tree.insert(path, bytes);
            }
        }
        tree
    }

    /// Whether a file or folder under a temporary name is there.
    pub(crate) fn has_temporary(&self) -> bool {
        let mut entries = fs::read_dir(self.path()).unwrap();
        entries.any(|entry| entry.unwrap().file_name().to_string_lossy().starts_with(".deltaloom-"))
    }

    /// The program with these arguments, separated by spaces.
    pub(crate) fn command(&self, arguments: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_deltaloom"));
        command.args(arguments.split_whitespace());
        self.prepare(&mut command);
        command
    }

    /// Sets where a command runs and where its output goes.
    pub(crate) fn prepare(&self, command: &mut Command) {
        command.current_dir(self.path()).env_remove("COLUMNS").env_remove("LINES");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    }

    pub(crate) fn run(&self, arguments: &str) -> Ended {
        finish(self.command(arguments).spawn().unwrap())
    }

    /// Runs a command that must succeed.
    pub(crate) fn ok(&self, arguments: &str) -> Ended {
        let ended = self.run(arguments);
        assert_eq!(ended.code, Some(0), "{arguments}: {}", ended.err);
        ended
    }

    /// Runs a shell script in which `disk` is a file system of its own, of this size, and `$0` the
    /// program; `None` where the system does not allow that.
    #[cfg(target_os = "linux")]
    pub(crate) fn with_disk(&self, size: &str, script: &str) -> Option<Ended> {
        fs::create_dir(self.path().join("disk")).unwrap();
        let mount = format!("mount -t tmpfs -o size={size} tmpfs disk 2>&- || {{ echo skipped; exit; }}");
        let mut command = Command::new("unshare");
        command.args(["--user", "--mount", "--map-root-user", "sh", "-c", &format!("{mount}\n{script}")]);
        command.arg(env!("CARGO_BIN_EXE_deltaloom"));
        self.prepare(&mut command);
        let ended = finish(command.spawn().ok()?);
        (ended.code == Some(0) && ended.text() != "skipped\n").then_some(ended)
    }

    /// Runs a command that must be refused: exit code 2, an error, and nothing written or lost.
    /// Returns standard error.
    pub(crate) fn refused(&self, arguments: &str) -> String {
        self.fails(2, arguments)
    }

    /// Runs a command that must fail with this exit code; otherwise like [`Self::refused`].
    pub(crate) fn fails(&self, code: i32, arguments: &str) -> String {
        self.fails_as(code, self.command(arguments), arguments)
    }

    pub(crate) fn refuses(&self, command: Command, what: &str) -> String {
        self.fails_as(2, command, what)
    }

    pub(crate) fn fails_as(&self, code: i32, mut command: Command, what: &str) -> String {
        let before = self.tree();
        let ended = finish(command.spawn().unwrap());
        assert_eq!(ended.code, Some(code), "{what}: {}", ended.err);
        assert!(ended.err.starts_with("error: "), "{what}: {}", ended.err);
        if !ended.out.is_empty() {
            assert!(ended.json()["error"]["kind"].is_string(), "{what}: {}", ended.text());
        }
        let after = self.tree();
        assert!(before.keys().eq(after.keys()), "{what}: {:?}", after.keys());
        assert!(before == after, "{what}: a file has changed");
        ended.err
    }
}

/// Waits for a child, but not for ever.
pub(crate) fn finish(mut child: Child) -> Ended {
    // Someone must read while the child writes.
    let (mut out, mut err) = (child.stdout.take(), child.stderr.take());
    let reader = std::thread::spawn(move || (drain(&mut out), drain(&mut err)));
    let start = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if start.elapsed() > PATIENCE {
            child.kill().unwrap();
            panic!("the program does not end");
        }
        std::thread::sleep(Duration::from_millis(1));
    };
    let (stdout, stderr) = reader.join().unwrap();
    Ended::new(Output { status, stdout, stderr })
}

/// Waits until something holds, which must be before the child ends.
pub(crate) fn wait(child: &mut Child, mut until: impl FnMut() -> bool) {
    let start = Instant::now();
    while !until() {
        assert!(start.elapsed() < Duration::from_secs(60), "this takes too long");
        assert!(child.try_wait().unwrap().is_none(), "ended too early");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn drain(pipe: &mut Option<impl std::io::Read>) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Some(pipe) = pipe {
        pipe.read_to_end(&mut bytes).unwrap();
    }
    bytes
}

/// Bytes of a bundled file of weights.
pub(crate) fn asset(name: &str) -> Vec<u8> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/demo");
    fs::read(folder.join(format!("{name}.safetensors"))).unwrap()
}

/// Copies of bundled weights in one file, each turned a little, so that none is tied to another.
pub(crate) fn many(name: &str, copies: usize) -> Vec<u8> {
    let tensors = tensors_of(&asset(name));
    let copies: Vec<_> = (0..copies).flat_map(|i| tensors.iter().map(move |tensor| (i, tensor))).collect();
    let names: Vec<String> = copies.iter().map(|(i, (name, ..))| format!("{i}.{name}")).collect();
    let turned = names.iter().zip(&copies).map(|(name, (i, (_, shape, bytes)))| {
        let mut bytes = bytes.clone();
        bytes.rotate_left(2 * i);
        (name.as_str(), "BF16", &shape[..], bytes)
    });
    safetensors(&turned.collect::<Vec<_>>())
}

/// Name, dtype, shape and bytes.
pub(crate) type Tensor<'a> = (&'a str, &'a str, &'a [u64], Vec<u8>);

/// A safetensors file of these tensors.
pub(crate) fn safetensors(tensors: &[Tensor<'_>]) -> Vec<u8> {
    let (mut header, mut data) = (BTreeMap::new(), Vec::new());
    for (name, dtype, shape, bytes) in tensors {
        let end = data.len() + bytes.len();
        // In this order whether maps of JSON are sorted or keep it.
        let entry = json!({"data_offsets": [data.len(), end], "dtype": dtype, "shape": shape});
        header.insert(*name, entry);
        data.extend_from_slice(bytes);
    }
    with_header(&serde_json::to_string(&header).unwrap(), &data)
}

/// A file with any header before its data.
pub(crate) fn with_header(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
}

/// Names, shapes and bytes of the tensors of a BF16 file, in the order of their names.
pub(crate) fn tensors_of(file: &[u8]) -> Vec<(String, Vec<u64>, Vec<u8>)> {
    let header_end = 8 + usize::try_from(u64::from_le_bytes(file[..8].try_into().unwrap())).unwrap();
    let header: BTreeMap<String, Value> = serde_json::from_slice(&file[8..header_end]).unwrap();
    let tensor = |(name, entry): (String, Value)| {
        assert_eq!(entry["dtype"], "BF16");
        let offset =
            |i: usize| header_end + usize::try_from(entry["data_offsets"][i].as_u64().unwrap()).unwrap();
        let shape = entry["shape"].as_array().unwrap().iter().map(|size| size.as_u64().unwrap()).collect();
        (name, shape, file[offset(0)..offset(1)].to_vec())
    };
    header.into_iter().filter(|(name, _)| name != "__metadata__").map(tensor).collect()
}
