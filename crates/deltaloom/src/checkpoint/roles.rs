//! What the tensors of a checkpoint are: weights, which counts and figures are about, or states of
//! a training, such as the moments of an optimizer. The names of files and tensors decide.
//! Nothing that is stored depends on it.

use std::collections::HashSet;

use super::{Contents, Member};
use crate::tensor::TensorInfo;

/// What a tensor is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// It counts as weights.
    Weights,
    /// It belongs to the training: to the optimizer, the scheduler or the random numbers.
    State,
    /// Only bytes: a small file, the frame of a file, or its tail.
    Bytes,
}

/// The roles of all tensors of a checkpoint. If there are states and no weights, the states are
/// what it is about, and count as weights.
#[derive(Debug, Clone)]
pub struct Roles {
    by_member: Vec<Vec<Role>>,
}

impl Roles {
    /// The roles in these files.
    #[must_use]
    pub fn of(members: &[Member]) -> Self {
        let mut by_member: Vec<Vec<Role>> = members.iter().map(roles_of).collect();
        if !by_member.iter().flatten().any(|role| *role == Role::Weights) {
            let states = by_member.iter_mut().flatten().filter(|role| **role == Role::State);
            states.for_each(|role| *role = Role::Weights);
        }
        Self { by_member }
    }

    /// The role of a tensor, given by the number of its member and its number there.
    #[must_use]
    pub fn role(&self, (member, number): (usize, usize)) -> Role {
        self.by_member[member][number]
    }

    /// Whether a tensor counts as weights.
    #[must_use]
    pub fn is_weights(&self, place: (usize, usize)) -> bool {
        self.role(place) == Role::Weights
    }
}

/// Whether files hold weights, beside any states.
pub(crate) fn have_weights(members: &[Member]) -> bool {
    members.iter().any(|member| roles_of(member).contains(&Role::Weights))
}

fn roles_of(member: &Member) -> Vec<Role> {
    let is_state_file = is_state_file(&member.path);
    // Where an optimizer writes moments, it writes counters beside them.
    let groups: HashSet<&str> = member.tensors.iter().filter_map(|info| moment_of(&info.name)).collect();
    let is_counter = |name: &str| {
        let (group, last) = name.rsplit_once(SEPARATORS).unwrap_or(("", name));
        COUNTERS.contains(&last) && groups.contains(group)
    };
    let is_state = |name: &str| {
        is_state_file || is_below_state_key(name) || moment_of(name).is_some() || is_counter(name)
    };
    let last = member.tensors.len().saturating_sub(1);
    let role = |(number, info): (usize, &TensorInfo)| {
        let is_tail = member.tail_bytes > 0 && number == last;
        if !member.is_typed(info) || (is_tail && matches!(member.contents, Contents::Safetensors(_))) {
            Role::Bytes
        } else if is_state(&info.name) {
            Role::State
        } else {
            Role::Weights
        }
    };
    member.tensors.iter().enumerate().map(role).collect()
}

/// What separates the parts of a tensor's name.
const SEPARATORS: [char; 2] = ['.', '/'];

/// Parts of names that only optimizers use: of Adam and its relatives, SGD, RMSprop, Adadelta,
/// Adafactor, and Adam in 8 bits.
const MOMENTS: [&str; 19] = [
    "exp_avg",
    "exp_avg_sq",
    "max_exp_avg_sq",
    "exp_avg_sq_row",
    "exp_avg_sq_col",
    "exp_avg_slow",
    "exp_avg_diff",
    "exp_inf",
    "momentum_buffer",
    "square_avg",
    "grad_avg",
    "acc_delta",
    "state1",
    "state2",
    "qmap1",
    "qmap2",
    "absmax1",
    "absmax2",
    "mu_product",
];

/// What stands beside moments.
const COUNTERS: [&str; 5] = ["step", "RMS", "lr", "prev", "step_size"];

/// Keys under which a file with everything keeps the states.
const STATE_KEYS: [&str; 12] = [
    "optimizer",
    "optimizers",
    "optimizer_state",
    "optimizer_states",
    "optimizer_state_dict",
    "optim",
    "optim_state",
    "opt_state",
    "lr_scheduler",
    "lr_schedulers",
    "rng_state",
    "rng_states",
];

/// Whether the first part of a name says that everything below is state.
fn is_below_state_key(name: &str) -> bool {
    name.split_once(SEPARATORS).is_some_and(|(first, _)| STATE_KEYS.contains(&first))
}

/// If a name has the part of a moment: what comes before that part.
fn moment_of(name: &str) -> Option<&str> {
    let mut begin = 0;
    for part in name.split(SEPARATORS) {
        if MOMENTS.contains(&part) {
            return Some(name[..begin].trim_end_matches(SEPARATORS));
        }
        begin += part.len() + 1;
    }
    None
}

/// Whether a file holds states by its path: that of an optimizer, a scheduler, a scaler or random
/// numbers, as trainers name them, or any file in the folder of an optimizer.
pub(crate) fn is_state_file(path: &str) -> bool {
    let path = path.to_ascii_lowercase();
    let mut folders = path.split('/');
    let name = folders.next_back().unwrap_or_default();
    let is_numbered = |name: &str| name.bytes().all(|byte| byte.is_ascii_digit() || byte == b'_');
    let is_folder = |folder: &str| folder.strip_prefix("optimizer").is_some_and(is_numbered);
    let begins = ["optimizer", "scheduler", "lr_scheduler", "rng_state", "random_states", "grad_scaler"];
    begins.iter().any(|begin| name.starts_with(begin))
        || name.contains("optim_states")
        || matches!(name, "scaler.pt" | "optim.pt" | "training_args.bin")
        || name.ends_with(".distcp")
        || folders.any(is_folder)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::DType;

    fn member(path: &str, names: &[&str]) -> Member {
        let info = |name: &&str| TensorInfo::sized((*name).into(), DType::F32, vec![2]);
        Member::safetensors(path.into(), Vec::new(), names.iter().map(info).collect(), 0)
    }

    fn weights(members: &[Member]) -> Vec<String> {
        let roles = Roles::of(members);
        let all = members.iter().enumerate().flat_map(|(m, member)| {
            member.tensors.iter().enumerate().map(move |(t, info)| ((m, t), &info.name))
        });
        all.filter(|(place, _)| roles.is_weights(*place)).map(|(_, name)| name.clone()).collect()
    }

    #[test]
    fn files_of_states_are_known_by_their_names() {
        for path in [
            "optimizer.pt",
            "checkpoint-5/optimizer.bin",
            "model/rng_state_3.pth",
            "scheduler.pt",
            "global_step5/zero_pp_rank_0_mp_rank_00_optim_states.pt",
            "random_states_0.pkl",
            "optimizer/state.safetensors",
            "optimizer_0/__0_0.distcp",
            "scaler.pt",
        ] {
            assert!(is_state_file(path), "{path}");
        }
        for path in [
            "model.safetensors",
            "pytorch_model-00001-of-00002.bin",
            "model/adapter_model.safetensors",
            "mp_rank_00_model_states.pt",
            "my-optimizer-net/model.safetensors",
            "ckpt.pt",
        ] {
            assert!(!is_state_file(path), "{path}");
        }
    }

    #[test]
    fn tensors_of_states_are_known_by_their_names() {
        let names = [
            "model.layers.0.q.weight",
            "optimizer.exp_avg.model.layers.0.q.weight",
            "optimizer_states.0.state.3.step",
            "lr_schedulers.0.base",
            "layers.0.step",
            "exp_avg/model.norm",
            "state.0.exp_avg",
            "state.0.exp_avg_sq",
            "state.0.step",
            "state.1.step",
            "layers.1.absmax",
            "model.optimizer.gate",
        ];
        let expected = [names[0], names[4], names[9], names[10], names[11]];
        assert_eq!(weights(&[member("all.pt", &names)]), expected);
    }

    #[test]
    fn states_alone_count() {
        let states = || member("optimizer.pt", &["state.0.exp_avg", "state.0.step"]);
        let files = || Member::opaque("config.json".into(), 7);
        assert_eq!(weights(&[files(), states()]), ["state.0.exp_avg", "state.0.step"]);
        assert!(!have_weights(&[files(), states()]));
        let all = [files(), member("model.safetensors", &["w"]), states()];
        assert_eq!(weights(&all), ["w"]);
        assert!(have_weights(&all));
        assert_eq!(weights(&[files()]), [""; 0]);
    }

    #[test]
    fn tails_and_small_files_are_bytes() {
        let tensors = vec![TensorInfo::sized("w".into(), DType::F32, vec![2])];
        let tail = Member::safetensors("m.safetensors".into(), Vec::new(), tensors, 9);
        assert_eq!(weights(&[tail, Member::opaque("tokenizer.json".into(), 5)]), ["w"]);
    }
}
