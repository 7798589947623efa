//! A model computes what transformers computes, and the same bits whatever the chunks, the batch,
//! the threads and the form of its weights. The tiny models come from tools/make_tiny_models.py.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

#[path = "../../deltaloom/tests/common/mod.rs"]
mod common;
mod tiny;

use std::path::Path;

use common::*;
use deltaloom::checkpoint::Checkpoint;
use deltaloom::{Bases, Container, Error, Limits, Silent, with_threads};
use deltaloom_compute::{Form, Run};
use deltaloom_lm::layer::{KvType, MemoryOptions, TenantId};
use deltaloom_lm::model::{Chunk, Model, PerplexityOptions, perplexity};
use deltaloom_lm::tenancy::{FamilyOptions, Forms};
use deltaloom_lm::text::{Special, Tokenizer};
use tiny::*;

const NAMES: [&str; 8] = ["gemma3", "gpt2", "llama3", "llama_linear", "mistral", "opt", "qwen2", "qwen3"];

fn open(name: &str) -> Model {
    Model::open(&folder(name), FamilyOptions::default()).unwrap()
}

/// Token ids and the logits of transformers.
fn golden(name: &str) -> (Vec<u32>, Vec<f32>) {
    let bytes = std::fs::read(folder(&format!("{name}.safetensors"))).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let ids =
        file.tensor("ids").unwrap().data().as_chunks().0.iter().map(|b| u32::from_le_bytes(*b)).collect();
    let logits = file.tensor("logits").unwrap();
    (ids, logits.data().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect())
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

/// Logits of every token of some sequences, in chunks of this many tokens, all in one batch.
fn logits(model: &mut Model, kv: KvType, chunk: usize, texts: &[(TenantId, &[u32])]) -> Vec<Vec<f32>> {
    let run = Run::default();
    let mut memory = model.memory(MemoryOptions::default().with_kv(kv));
    let sequences: Vec<_> = texts.iter().map(|(tenant, _)| memory.begin(*tenant)).collect();
    let mut found = vec![Vec::new(); texts.len()];
    let longest = texts.iter().map(|(_, ids)| ids.len()).max().unwrap();
    for start in (0..longest).step_by(chunk) {
        let part = |ids: &[u32]| start.min(ids.len())..(start + chunk).min(ids.len());
        let chunks: Vec<Chunk<'_>> = (sequences.iter().zip(texts))
            .map(|(sequence, (_, ids))| Chunk { sequence: *sequence, tokens: &ids[part(ids)] })
            .collect();
        let hidden = model.forward(&mut memory, &chunks, &run).unwrap();
        let mut first = 0;
        for (chunk, found) in chunks.iter().zip(&mut found) {
            let tokens: Vec<usize> = (first..first + chunk.tokens.len()).collect();
            found.extend(hidden.logits(&tokens, &run).unwrap());
            first += chunk.tokens.len();
        }
    }
    found
}

#[test]
fn logits_are_those_of_transformers() {
    for name in NAMES {
        let (ids, expected) = golden(name);
        let mut model = open(name);
        let largest = expected.iter().fold(0.0_f32, |largest, x| largest.max(x.abs()));
        for (kv, tolerance) in [(KvType::F32, 2e-4), (KvType::Bf16, 3e-2)] {
            let found = logits(&mut model, kv, ids.len(), &[(Model::BASE, &ids)]);
            let error = found[0].iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(error <= tolerance * largest, "{name} {kv:?}: {error} of {largest}");
            let best = |logits: &[f32]| -> Vec<usize> {
                let tokens = logits.chunks_exact(logits.len() / ids.len());
                let best = tokens.map(|it| it.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)));
                best.flatten().map(|(id, _)| id).collect()
            };
            assert!(kv == KvType::Bf16 || best(&found[0]) == best(&expected), "{name}");
        }
    }
}

#[test]
fn a_table_of_positions_ends() {
    for name in ["gpt2", "opt"] {
        let mut model = open(name);
        let mut memory = model.memory(MemoryOptions::default());
        let sequence = memory.begin(Model::BASE);
        let run = Run::default();
        model.forward(&mut memory, &[Chunk { sequence, tokens: &[1; 127] }], &run).unwrap();
        let Err(error) = model.forward(&mut memory, &[Chunk { sequence, tokens: &[1; 2] }], &run) else {
            panic!("there are 128 positions")
        };
        assert!(error.to_string().contains("has 128 positions"), "{error}");
        model.forward(&mut memory, &[Chunk { sequence, tokens: &[1] }], &run).unwrap();
    }
}

/// The error of an OPT with these settings in place of its own.
fn refused(from: &str, to: &str) -> String {
    let config = config_text("opt");
    assert!(config.contains(from), "{from}");
    let refused = of_bytes(&weights("opt"), &config.replace(from, to), FamilyOptions::default());
    refused.err().unwrap().to_string()
}

#[test]
fn settings_of_opt_that_are_not_built_are_refused_by_name() {
    let positions = "\"max_position_embeddings\": 128,";
    for (from, to, words) in [
        ("\"do_layer_norm_before\": true", "\"do_layer_norm_before\": false", "do_layer_norm_before"),
        ("\"do_layer_norm_before\": true", "\"do_layer_norm_before\": \"no\"", "do_layer_norm_before"),
        ("layer_norm\": false", "layer_norm\": true", "_remove_final_layer_norm"),
        ("\"enable_bias\": true", "\"enable_bias\": false", "enable_bias"),
        ("affine\": true", "affine\": false", "layer_norm_elementwise_affine"),
        ("\"word_embed_proj_dim\": 32", "\"word_embed_proj_dim\": 16", "word_embed_proj_dim: 16"),
        ("\"relu\"", "\"gelu\"", "hidden_act \"gelu\""),
        (positions, "", "max_position_embeddings"),
        (positions, "\"max_position_embeddings\": 0,", "max_position_embeddings"),
        (positions, "\"max_position_embeddings\": 130,", "[132, 32]"),
        (positions, "\"max_position_embeddings\": 4294967296,", "max_position_embeddings"),
        ("\"ffn_dim\": 48", "\"ffn_dim\": 64", "fc1.weight"),
    ] {
        let error = refused(from, to);
        assert!(error.contains(words), "{error}, not {words}");
    }
    // A bias that is not there.
    let mut tensors = tensors("opt");
    tensors.retain(|tensor| !tensor.name.ends_with("layers.1.fc1.bias"));
    let found = of_bytes(&safetensors(&tensors), &config_text("opt"), FamilyOptions::default());
    assert!(matches!(found, Err(Error::NotFound { .. })));
}

#[test]
fn chunks_batches_and_threads_change_no_bit() {
    for name in NAMES {
        let (ids, _) = golden(name);
        let ids = [&ids[..], &ids[..45]].concat();
        let mut model = open(name);
        let expected = logits(&mut model, KvType::Bf16, ids.len(), &[(Model::BASE, &ids)]).remove(0);
        for chunk in [1, 7, 31, 32, 33, 256] {
            let others: [&[u32]; 3] = [&ids, &ids[3..20], &ids[50..]];
            for threads in [1, 2] {
                let texts = others.map(|ids| (Model::BASE, ids));
                let run = || Ok(logits(&mut model, KvType::Bf16, chunk, &texts));
                let found = with_threads(threads, run).unwrap();
                assert_eq!(bits(&found[0]), bits(&expected), "{name} {chunk} {threads}");
            }
        }
    }
}

#[test]
fn a_tenant_has_the_bits_of_its_dense_model() {
    for name in NAMES {
        let (ids, _) = golden(name);
        let (base, config) = (weights(name), config_text(name));
        let dense = |weights: &[u8]| {
            let mut model = of_bytes(weights, &config, FamilyOptions::default()).unwrap();
            logits(&mut model, KvType::Bf16, 50, &[(Model::BASE, &ids)]).remove(0)
        };
        let fine_tunes = [tuned(name, 1), tuned(name, 2)];
        let expected = [dense(&base), dense(&fine_tunes[0]), dense(&fine_tunes[1])];
        assert_ne!(bits(&expected[1]), bits(&expected[0]));
        for forms in Form::ALL.map(Forms::All).into_iter().chain([Forms::ByShare]) {
            for budget in [u64::MAX, 20_000, 0] {
                let options = FamilyOptions::default().with_forms(forms).with_budget(budget);
                let mut model = of_bytes(&base, &config, options).unwrap();
                let mut tenants = vec![Model::BASE];
                for tuned in &fine_tunes {
                    let prepared = model.prepare(container(tuned, &base)).unwrap();
                    tenants.push(model.admit(prepared).unwrap());
                }
                // Tenants in turn, and the base between them.
                let order = [1, 0, 2, 1];
                let texts = order.map(|tenant: usize| (tenants[tenant], &ids[..]));
                for (chunk, threads) in [(1, 1), (50, 2)] {
                    let run = || Ok(logits(&mut model, KvType::Bf16, chunk, &texts));
                    for (found, tenant) in with_threads(threads, run).unwrap().iter().zip(order) {
                        assert_eq!(bits(found), bits(&expected[tenant]), "{name} {forms:?} {budget} {chunk}");
                    }
                }
                let residency = model.residency();
                let matrices = budget.saturating_sub(residency.vector_bytes);
                assert!(residency.matrix_bytes <= matrices, "{residency:?}");
                model.retire(tenants[1]).unwrap();
                model.retire(tenants[2]).unwrap();
                let left = model.residency();
                assert_eq!((left.matrix_bytes, left.vector_bytes), (0, 0));
            }
        }
    }
}

#[test]
fn a_loss_is_that_of_its_logits() {
    let (ids, expected) = golden("llama_linear");
    let mut model = open("llama_linear");
    let memory = MemoryOptions::default().with_kv(KvType::F32);
    let log_prob = |at: usize| {
        let logits = &expected[(at - 1) * 96..at * 96];
        let sum: f64 = logits.iter().map(|x| f64::from(*x).exp()).sum();
        sum.ln() - f64::from(logits[ids[at] as usize])
    };
    let mean: f64 = (1..50).map(log_prob).sum::<f64>() / 49.0;
    let mut losses = Vec::new();
    for (chunk, windows) in [(1, 1), (7, 3), (256, 2)] {
        let options = PerplexityOptions::new(64).with_chunks(chunk, windows).with_memory(memory);
        let mut steps = 0;
        let progress = |tokens| {
            steps += tokens;
            Ok(())
        };
        let found = perplexity(&mut model, Model::BASE, &ids, &options, &Run::default(), progress).unwrap();
        assert!((found.loss - mean).abs() < 1e-4, "{} {mean}", found.loss);
        assert_eq!((found.tokens, found.windows, steps), (49, 1, 50));
        losses.push(found.loss.to_bits());
    }
    assert!(losses.iter().all(|loss| *loss == losses[0]));
    // Windows that overlap score every token once.
    let options = PerplexityOptions::new(20).with_stride(10);
    let found = perplexity(&mut model, Model::BASE, &ids, &options, &Run::default(), |_| Ok(())).unwrap();
    assert_eq!((found.tokens, found.windows), (49, 4));
    assert!(found.standard_error.is_some());
    for (ids, options) in [
        (&ids[..1], PerplexityOptions::new(20)),
        (&ids[..], PerplexityOptions::new(1)),
        (&ids[..], PerplexityOptions::new(20).with_stride(0)),
        (&ids[..], PerplexityOptions::new(20).with_stride(21)),
        (&[1, 2, 96][..], PerplexityOptions::new(20)),
    ] {
        let found = perplexity(&mut model, Model::BASE, ids, &options, &Run::default(), |_| Ok(()));
        assert!(matches!(found, Err(Error::InvalidArgument(_))), "{options:?}");
    }
}

#[test]
fn memory_is_counted_and_given_back() {
    let (ids, _) = golden("mistral");
    let mut model = open("mistral");
    let run = Run::default();
    // Three layers of two heads of twelve elements, 32 positions of keys and values in BF16.
    let page = 2 * 2 * 12 * 32 * 2;
    let mut memory = model.memory(MemoryOptions::default().with_budget(Some(7 * page)));
    let [one, two] = [Model::BASE; 2].map(|tenant| memory.begin(tenant));
    let chunk = |sequence, tokens| Chunk { sequence, tokens };
    model.forward(&mut memory, &[chunk(one, &ids[..32])], &run).unwrap();
    assert_eq!((memory.used_bytes(), memory.tokens(one).unwrap()), (3 * page, 32));
    model.forward(&mut memory, &[chunk(one, &ids[..1])], &run).unwrap();
    assert_eq!(memory.used_bytes(), 6 * page);
    // Two pages more than there may be, and nothing changes.
    let both = [chunk(one, &ids[..1]), chunk(two, &ids[..1])];
    let refused = model.forward(&mut memory, &both, &run).err();
    assert!(matches!(refused, Some(Error::LimitExceeded { found, .. }) if found == 9 * page));
    assert_eq!((memory.used_bytes(), memory.tokens(one).unwrap()), (6 * page, 33));
    // The window of 24 tokens has left the first page.
    model.forward(&mut memory, &[chunk(one, &ids[..24])], &run).unwrap();
    assert_eq!((memory.used_bytes(), memory.tokens(one).unwrap()), (3 * page, 57));
    model.forward(&mut memory, &both, &run).unwrap();
    memory.end(one).unwrap();
    memory.end(two).unwrap();
    assert_eq!(memory.used_bytes(), 0);
    assert!(memory.end(one).is_err() && memory.tokens(two).is_err());
    assert!(model.forward(&mut memory, &[chunk(one, &ids[..1])], &run).is_err());
}

#[test]
fn impossible_steps_are_told() {
    let mut model = open("qwen2");
    let run = Run::default();
    let mut memory = model.memory(MemoryOptions::default());
    let sequence = memory.begin(Model::BASE);
    let chunk = |tokens| Chunk { sequence, tokens };
    let mut told = |chunks: &[Chunk<'_>], words: &str| {
        let error = model.forward(&mut memory, chunks, &run).err().unwrap().to_string();
        assert!(error.contains(words), "{error}");
    };
    told(&[chunk(&[3, 96])], "token 96 is not in a vocabulary of 96");
    told(&[chunk(&[3]), chunk(&[4])], "twice");
    let mut stranger = open("mistral");
    assert!(stranger.forward(&mut memory, &[chunk(&[3])], &run).is_err());
    let nobody = memory.begin(TenantId::new(7));
    let chunks = [Chunk { sequence: nobody, tokens: &[1] }];
    assert!(matches!(model.forward(&mut memory, &chunks, &run), Err(Error::NotFound { .. })));
    assert!(model.retire(Model::BASE).is_err() && model.retire(TenantId::new(3)).is_err());
    let hidden = model.forward(&mut memory, &[], &run).unwrap();
    assert!(hidden.logits(&[], &run).unwrap().is_empty() && hidden.logits(&[0], &run).is_err());
    drop(hidden);
    let hidden = model.forward(&mut memory, &[chunk(&[1, 2])], &run).unwrap();
    assert!(hidden.logits(&[2], &run).is_err() && hidden.log_probs(&[(0, 96)], &run).is_err());
}

/// The tensors of a tiny model.
fn tensors(name: &str) -> Vec<Tensor> {
    let bytes = weights(name);
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let one = |(name, view): (String, safetensors::tensor::TensorView<'_>)| {
        let shape: Vec<u64> = view.shape().iter().map(|size| *size as u64).collect();
        tensor(&name, "BF16", &shape, view.data().to_vec())
    };
    file.tensors().into_iter().map(one).collect()
}

#[test]
fn half_precision_is_widened_without_loss() {
    let numbers = |tensor: &Tensor| -> Vec<f32> {
        let pairs = tensor.bytes.as_chunks().0.iter();
        pairs.map(|pair| half::f16::from_f32(half::bf16::from_le_bytes(*pair).to_f32()).to_f32()).collect()
    };
    let as_type = |dtype: &str, encode: fn(&[f32]) -> Vec<u8>| {
        let tensors = tensors("qwen3").into_iter();
        let tensors = tensors.map(|it| tensor(&it.name, dtype, &it.shape, encode(&numbers(&it))));
        let file = safetensors(&tensors.collect::<Vec<_>>());
        let mut model = of_bytes(&file, &config_text("qwen3"), FamilyOptions::default()).unwrap();
        logits(&mut model, KvType::Bf16, 50, &[(Model::BASE, &golden("qwen3").0)]).remove(0)
    };
    assert_eq!(bits(&as_type("F16", f16_bytes)), bits(&as_type("F32", f32_bytes)));
}

/// A tiny model in F16, and a fine-tune of it in which a seventh of the numbers differ.
fn halves(name: &str, is_tuned: bool) -> Vec<u8> {
    let bytes = if is_tuned { tuned(name, 1) } else { weights(name) };
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let one = |(name, view): (String, safetensors::tensor::TensorView<'_>)| {
        let shape: Vec<u64> = view.shape().iter().map(|size| *size as u64).collect();
        let numbers = view.data().as_chunks().0.iter();
        let numbers: Vec<f32> = numbers.map(|pair| half::bf16::from_le_bytes(*pair).to_f32()).collect();
        tensor(&name, "F16", &shape, f16_bytes(&numbers))
    };
    safetensors(&file.tensors().into_iter().map(one).collect::<Vec<_>>())
}

#[test]
fn a_tenant_of_a_widened_base_has_the_bits_of_its_dense_model() {
    let (ids, _) = golden("qwen3");
    let config = config_text("qwen3");
    let (base, tuned) = (halves("qwen3", false), halves("qwen3", true));
    let open = |weights: &[u8]| of_bytes(weights, &config, FamilyOptions::default()).unwrap();
    let logits_of =
        |model: &mut Model, tenant: TenantId| bits(&logits(model, KvType::Bf16, 50, &[(tenant, &ids)])[0]);
    let expected = logits_of(&mut open(&tuned), Model::BASE);
    let mut model = open(&base);
    let prepared = model.prepare(container(&tuned, &base)).unwrap();
    let tenant = model.admit(prepared).unwrap();
    assert_eq!(logits_of(&mut model, tenant), expected);
    assert_ne!(logits_of(&mut model, Model::BASE), expected);
    // Packed against another base, or of another shape.
    let other = container(&base, &tuned);
    assert!(model.prepare(other).is_err());
    // Of another type, and without norms.
    let mut tensors = tensors("qwen3");
    tensors.retain(|tensor| !tensor.name.contains("norm"));
    let found = model.prepare(container(&safetensors(&tensors), &base));
    assert!(matches!(found, Err(Error::NotFound { .. } | Error::InvalidArgument(_))));
}

#[test]
fn a_digest_is_that_of_the_dense_model_and_files_come_with_a_fine_tune() {
    for (name, base, tuned) in [
        ("qwen2", weights("qwen2"), tuned("qwen2", 1)),
        ("qwen3", halves("qwen3", false), halves("qwen3", true)),
    ] {
        let open = |weights: &[u8]| of_bytes(weights, &config_text(name), FamilyOptions::default()).unwrap();
        let scratch = tempfile::tempdir().unwrap();
        std::fs::write(scratch.path().join("model.safetensors"), &tuned).unwrap();
        std::fs::write(scratch.path().join("extra.json"), "{}").unwrap();
        let folder = Checkpoint::open(scratch.path(), &Limits::default()).unwrap();
        let mut bases = Bases::default();
        bases.push_checkpoint(Path::new("base"), checkpoint(&base).unwrap());
        let mut packed = Vec::new();
        deltaloom::pack_to(&folder, &bases, &mut packed, &options(), &Silent).unwrap();
        let mut model = open(&base);
        let preparer = model.preparer();
        let prepare = move |bytes: Vec<u8>| {
            let limits = Limits::default();
            preparer.prepare(Container::from_source(Path::new("t"), Box::new(bytes), &limits).unwrap())
        };
        let prepared = std::thread::spawn(move || prepare(packed).unwrap()).join().unwrap();
        let digest = prepared.digest();
        assert_eq!(digest, open(&tuned).digest(Model::BASE).unwrap(), "{name}");
        assert!(prepared.changed_matrices() > 0);
        assert_eq!(prepared.file("extra.json", 2).unwrap().as_deref(), Some(&b"{}"[..]));
        assert!(matches!(prepared.file("extra.json", 1), Err(Error::LimitExceeded { .. })));
        let tenant = model.admit(prepared).unwrap();
        assert_eq!(model.digest(tenant).unwrap(), digest);
        assert_eq!(model.file(tenant, "extra.json", 2).unwrap().as_deref(), Some(&b"{}"[..]));
        // A fine-tune without a difference.
        let same = model.prepare(container(&base, &base)).unwrap();
        assert_eq!((same.digest(), same.changed_matrices()), (model.digest(Model::BASE).unwrap(), 0));
        assert_ne!(same.digest(), digest);
    }
}

#[test]
fn a_tenant_of_a_gguf_file_has_the_bits_of_its_dense_model() {
    let (ids, _) = golden("mistral");
    let scratch = tempfile::tempdir().unwrap();
    let (base, tuned) = (folder("mistral.gguf"), scratch.path().join("tuned.gguf"));
    let mut bytes = std::fs::read(&base).unwrap();
    // The lowest bits of the numbers behind the metadata, which has less than 8 kB.
    bytes[8192..].iter_mut().step_by(14).for_each(|byte| *byte ^= 1);
    std::fs::write(&tuned, &bytes).unwrap();
    let open = |path: &Path| Model::open(path, FamilyOptions::default()).unwrap();
    let logits_of =
        |model: &mut Model, tenant: TenantId| bits(&logits(model, KvType::Bf16, 50, &[(tenant, &ids)])[0]);
    let expected = logits_of(&mut open(&tuned), Model::BASE);
    let mut bases = Bases::default();
    bases.push_checkpoint(&base, Checkpoint::open(&base, &Limits::default()).unwrap());
    let mut packed = Vec::new();
    let file = Checkpoint::open(&tuned, &Limits::default()).unwrap();
    deltaloom::pack_to(&file, &bases, &mut packed, &options(), &Silent).unwrap();
    let container = Container::from_source(Path::new("t"), Box::new(packed), &Limits::default()).unwrap();
    let mut model = open(&base);
    let prepared = model.prepare(container).unwrap();
    let tenant = model.admit(prepared).unwrap();
    assert_eq!(logits_of(&mut model, tenant), expected);
    assert_ne!(logits_of(&mut model, Model::BASE), expected);
}

#[test]
fn a_file_of_llama_cpp_is_the_model_that_it_was_made_from() {
    let file = folder("mistral.gguf");
    let mut model = Model::open(&file, FamilyOptions::default()).unwrap();
    let (ids, _) = golden("mistral");
    let logits_of = |model: &mut Model| logits(model, KvType::Bf16, 50, &[(Model::BASE, &ids)]).remove(0);
    assert_eq!(bits(&logits_of(&mut model)), bits(&logits_of(&mut open("mistral"))));
    assert_eq!((model.config().model_type.as_str(), model.config().max_positions), ("mistral", Some(64)));
    let tokenizer = Tokenizer::open(&file, 96).unwrap();
    let ids = tokenizer.encode("the bath<end>", Special::Add).unwrap();
    assert_eq!((ids.len(), tokenizer.pieces().text(&ids, true).as_str()), (7, "the bath"));
    assert_eq!(tokenizer.special().end, [95]);
    // A tokenizer of a kind that is not known, and one beside the file.
    let other = tempfile::tempdir().unwrap();
    let mut bytes = std::fs::read(&file).unwrap();
    let place = bytes.windows(5).position(|word| word == b"gpt-2").unwrap();
    bytes[place..place + 5].copy_from_slice(b"other");
    let path = other.path().join("model.gguf");
    std::fs::write(&path, bytes).unwrap();
    let refused = Tokenizer::open(&path, 96).unwrap_err();
    assert!(refused.with_path().contains("tokenizer.json beside the file"), "{}", refused.with_path());
    let level = serde_json::json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true});
    let json = serde_json::json!({"pre_tokenizer": level, "decoder": level,
        "model": {"type": "BPE", "vocab": {"a": 7}, "merges": []}});
    std::fs::write(other.path().join("tokenizer.json"), json.to_string()).unwrap();
    assert_eq!(Tokenizer::open(&path, 96).unwrap().id_of("a"), Some(7));
}

#[test]
fn files_that_do_not_fit_their_configuration_are_refused() {
    let told = |tensors: &[Tensor], config: &str, words: &str| {
        let error = of_bytes(&safetensors(tensors), config, FamilyOptions::default()).err().unwrap();
        assert!(error.to_string().contains(words), "{error}, not {words}");
    };
    let (qwen2, qwen3) = (tensors("qwen2"), tensors("qwen3"));
    let (text2, text3) = (config_text("qwen2"), config_text("qwen3"));
    let layers = |count: &str| text3.replace("\"num_hidden_layers\": 3", count);
    let without =
        |name: &str| -> Vec<Tensor> { qwen3.iter().filter(|tensor| tensor.name != name).cloned().collect() };
    told(&qwen3, &layers("\"num_hidden_layers\": 2").replace("\"layer_types\"", "\"x\""), "layers.2");
    told(&qwen3, &layers("\"num_hidden_layers\": 4").replace("\"layer_types\"", "\"x\""), "layers.3");
    told(&without("lm_head.weight"), &text3, "lm_head.weight");
    told(&without("model.norm.weight"), &text3, "model.norm.weight");
    told(&without("model.layers.1.self_attn.q_norm.weight"), &text3, "q_norm");
    told(&qwen2, &text3, "has shape");
    // Tensors of another family, and a head beside a tied one.
    let with = |tensors: &[Tensor], name: &str, shape: &[u64]| -> Vec<Tensor> {
        let bytes = vec![0; 2 * usize::try_from(shape.iter().product::<u64>()).unwrap()];
        [tensors, &[tensor(name, "BF16", shape, bytes)]].concat()
    };
    told(&with(&qwen3, "transformer.h.0.attn.c_attn.weight", &[4, 4]), &text3, "transformer.h.0");
    told(&with(&qwen3, "model.layers.0.mlp.experts.0.weight", &[4, 4]), &text3, "experts");
    told(&with(&qwen2, "model.layers.0.self_attn.q_norm.weight", &[8]), &text2, "q_norm");
    told(&with(&qwen2, "lm_head.weight", &[96, 32]), &text2, "tie_word_embeddings");
    let embedding = qwen2.iter().find(|tensor| tensor.name == "model.embed_tokens.weight").unwrap();
    let same = [&qwen2[..], &[tensor("lm_head.weight", "BF16", &[96, 32], embedding.bytes.clone())]].concat();
    of_bytes(&safetensors(&same), &text2, FamilyOptions::default()).unwrap();
    // Types that cannot be multiplied.
    for (dtype, size) in [("F8_E4M3", 1), ("I8", 1), ("I32", 4), ("F64", 8)] {
        let mut changed = qwen3.clone();
        let up = changed.iter_mut().find(|tensor| tensor.name.ends_with("0.mlp.up_proj.weight")).unwrap();
        (up.dtype, up.bytes) = (dtype.to_owned(), vec![0; 48 * 32 * size]);
        told(&changed, &text3, dtype);
    }
    // A fine-tune with a head of its own.
    let base = safetensors(&qwen2);
    let model = of_bytes(&base, &text2, FamilyOptions::default()).unwrap();
    let own = container(&safetensors(&with(&qwen2, "lm_head.weight", &[96, 32])), &base);
    assert!(matches!(model.prepare(own), Err(Error::InvalidArgument(what)) if what.contains("lm_head")));
}
