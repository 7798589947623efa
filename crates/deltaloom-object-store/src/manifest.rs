//! Compare-and-swap of the manifest by conditional writes. Its answer is reliable even if requests
//! and answers get lost. It does not know the contents of a manifest.
//!
//! A store refuses a conditional write in two cases that look the same. Either another writer was
//! faster, or an earlier try of this same write succeeded and its answer was lost. Comparing
//! contents does not distinguish them, because two writers may write the same bytes.
//!
//! So each replacement has its own number. The object carries it as metadata, together with the
//! numbers of the replacements before it. A writer that finds its number there has written, even if
//! others have since.

use bytes::Bytes;
use object_store::path::Path;
use object_store::{
    Attribute, Attributes, Error, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload, UpdateVersion,
};

use crate::fault::{Cause, Fault, is_no_bucket};
use crate::service::Service;

/// Name of the metadata with the numbers of the last replacements, newest first. Azure allows no
/// hyphens in it.
const WRITES: &str = "deltaloomwrites";
/// Number of remembered replacements: this many may happen between a lost answer and the read that
/// makes up for it. S3 allows 2 kB of metadata.
const REMEMBERED: usize = 160;
/// Hexadecimal digits of a number.
const DIGITS: usize = 12;
/// Tries per replacement, in addition to those that `object_store` makes per request.
const TRIES: usize = 4;
/// No manifest is larger, because older steps are in pages.
const MAX_BYTES: u64 = 64 << 20;

/// What a replacement relies on: the version of the object, and the numbers that came with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stamp {
    e_tag: Option<String>,
    version: Option<String>,
    writes: Vec<String>,
}

impl Stamp {
    /// The stamp as one string. None of its parts contains a line break, because all were in an
    /// HTTP header.
    pub(crate) fn to_text(&self) -> String {
        let part = |part: &Option<String>| part.clone().unwrap_or_default();
        format!("{}\n{}\n{}", part(&self.e_tag), part(&self.version), self.writes.concat())
    }

    /// Parses a string from [`Self::to_text`].
    pub(crate) fn from_text(text: &str) -> Option<Self> {
        let mut lines = text.split('\n');
        let mut part = || lines.next().map(|line| (!line.is_empty()).then(|| line.to_owned()));
        let (e_tag, version, writes) = (part()?, part()?, part()?);
        Some(Self { e_tag, version, writes: numbers(writes.as_deref().unwrap_or_default()) })
    }

    fn is_version_of(&self, other: &Self) -> bool {
        (&self.e_tag, &self.version) == (&other.e_tag, &other.version)
    }
}

fn numbers(text: &str) -> Vec<String> {
    let digits = text.as_bytes().chunks_exact(DIGITS).take(REMEMBERED);
    digits.map(|number| String::from_utf8_lossy(number).into_owned()).collect()
}

/// Reads the current manifest.
pub(crate) async fn read(
    store: &dyn ObjectStore,
    path: &Path,
    service: Service,
) -> Result<Option<(Bytes, Stamp)>, Fault> {
    let mut why = Fault::new(Cause::BadAnswer, service, "the manifest ends early");
    for _ in 0..TRIES {
        let found = match store.get(path).await {
            Ok(found) => found,
            Err(error @ Error::NotFound { .. }) if !is_no_bucket(&error) => return Ok(None),
            Err(error) => return Err(Fault::of(service, &error)),
        };
        let size = found.meta.size;
        if size > MAX_BYTES {
            let what = format!("the manifest has {size} bytes, the limit is {MAX_BYTES}");
            return Err(Fault::new(Cause::BadAnswer, service, what));
        }
        let writes = found.attributes.get(&Attribute::Metadata(WRITES.into())).map(|value| numbers(value));
        let stamp = Stamp {
            e_tag: found.meta.e_tag.clone(),
            version: found.meta.version.clone(),
            writes: writes.unwrap_or_default(),
        };
        if stamp.e_tag.is_none() && stamp.version.is_none() {
            // Manifests are JSON.
            let is_page = found.bytes().await.is_ok_and(|bytes| bytes.trim_ascii_start().starts_with(b"<"));
            return Err(match is_page {
                true => Fault::new(Cause::NoStore, service, "the answer is a web page"),
                false => Fault::new(Cause::NoConditions, service, "objects have no e-tags"),
            });
        }
        match found.bytes().await {
            Ok(bytes) if bytes.len() as u64 == size => return Ok(Some((bytes, stamp))),
            Ok(_) => {}
            Err(error) => why = Fault::of(service, &error),
        }
    }
    Err(why)
}

/// State of the manifest after a write that may or may not have succeeded.
#[derive(Debug, PartialEq, Eq)]
enum Standing {
    /// It was replaced by this write, and possibly by others since.
    Replaced,
    /// It is unchanged.
    Unchanged,
    /// Someone else has replaced it, so this write cannot take effect later either.
    Lost,
    /// It was replaced more often than is remembered, possibly by this write.
    Forgotten,
}

fn standing(now: Option<&(Bytes, Stamp)>, expected: Option<&Stamp>, number: &str, bytes: &Bytes) -> Standing {
    match (now, expected) {
        (Some((_, stamp)), _) if stamp.writes.iter().any(|write| write == number) => Standing::Replaced,
        // The store keeps no metadata, so only the contents can be compared.
        (Some((there, stamp)), _) if stamp.writes.is_empty() && there == bytes => Standing::Replaced,
        (Some((_, stamp)), Some(expected)) if stamp.is_version_of(expected) => Standing::Unchanged,
        (None, None) => Standing::Unchanged,
        (Some((_, stamp)), _) if stamp.writes.len() == REMEMBERED => {
            // The replacements after the expected version are known only if the write of that
            // version is remembered.
            let before = expected.and_then(|expected| expected.writes.first());
            if before.is_some_and(|before| stamp.writes.contains(before)) {
                Standing::Lost
            } else {
                Standing::Forgotten
            }
        }
        _ => Standing::Lost,
    }
}

/// Replaces the manifest if it is still at `expected`. Returns whether it was. After an error it
/// may have been replaced or not.
pub(crate) async fn replace(
    store: &dyn ObjectStore,
    path: &Path,
    service: Service,
    bytes: Bytes,
    expected: Option<Stamp>,
) -> Result<bool, Fault> {
    let number = random(service)?;
    let before = expected.as_ref().map_or(&[][..], |stamp| &stamp.writes);
    let writes: Vec<&str> = [number.as_str()].into_iter().chain(before.iter().map(String::as_str)).collect();
    let writes = writes[..writes.len().min(REMEMBERED)].concat();
    let mode = match &expected {
        None => PutMode::Create,
        Some(stamp) => {
            PutMode::Update(UpdateVersion { e_tag: stamp.e_tag.clone(), version: stamp.version.clone() })
        }
    };
    if expected.is_none() {
        prove_conditions(store, path, service).await?;
    }
    let mut all_refused = true;
    for _ in 0..TRIES {
        let attributes = Attributes::from_iter([(Attribute::Metadata(WRITES.into()), writes.clone())]);
        let options = PutOptions { mode: mode.clone(), attributes, ..PutOptions::default() };
        let error = match store.put_opts(path, PutPayload::from(bytes.clone()), options).await {
            Ok(_) => return Ok(true),
            Err(error) => error,
        };
        let fault = Fault::of(service, &error);
        if matches!(fault.cause(), Cause::Denied | Cause::NoConditions | Cause::Settings) {
            return Err(fault);
        }
        all_refused &= is_refusal(&error);
        // Repeating the write is safe in either case: it keeps its number, and only one of its
        // tries can meet the condition.
        match standing(read(store, path, service).await?.as_ref(), expected.as_ref(), &number, &bytes) {
            Standing::Replaced => return Ok(true),
            Standing::Lost => return Ok(false),
            Standing::Unchanged => {}
            Standing::Forgotten => {
                return Err(Fault::new(
                    Cause::Undecided,
                    service,
                    "others have replaced it many times since",
                ));
            }
        }
    }
    if all_refused {
        return Ok(false);
    }
    Err(Fault::new(Cause::Undecided, service, "no answer to several tries"))
}

fn is_refusal(error: &Error) -> bool {
    matches!(error, Error::AlreadyExists { .. } | Error::Precondition { .. } | Error::NotModified { .. })
}

/// Tries two writes that the store must refuse, once for each new series. If a server ignores
/// conditions, writers undo each other's steps without any error.
async fn prove_conditions(store: &dyn ObjectStore, manifest: &Path, service: Service) -> Result<(), Fault> {
    // Under a unique name, so that no other probe interferes.
    let probe = Path::parse(format!("{manifest}.probe-{}", random(service)?))
        .map_err(|why| Fault::new(Cause::Settings, service, why.to_string()))?;
    let failed = |error: Error| Fault::of(service, &error);
    let outdated = store.put(&probe, PutPayload::from_static(b"1")).await.map_err(failed)?;
    store.put(&probe, PutPayload::from_static(b"2")).await.map_err(failed)?;
    let mut proof = Ok(());
    for (mode, header) in [(PutMode::Create, "If-None-Match"), (PutMode::Update(outdated.into()), "If-Match")]
    {
        match store.put_opts(&probe, PutPayload::from_static(b"3"), mode.into()).await {
            Err(error) if is_refusal(&error) => {}
            Err(error) => proof = Err(failed(error)),
            Ok(_) => {
                let what = format!("it ignored {header}, so writers would undo each other's steps");
                proof = Err(Fault::new(Cause::NoConditions, service, what));
            }
        }
        if proof.is_err() {
            break;
        }
    }
    // If it stays behind, it does no harm.
    let _ = store.delete(&probe).await;
    proof
}

fn random(service: Service) -> Result<String, Fault> {
    match getrandom::u64() {
        Ok(number) => Ok(format!("{:0DIGITS$x}", number & ((1 << (4 * DIGITS)) - 1))),
        Err(why) => Err(Fault::new(Cause::Other, service, why.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A stamp whose last writes, newest first, have these names.
    fn stamp(e_tag: &str, writes: &[&str]) -> Stamp {
        let writes = writes.iter().map(|write| format!("{write:0>DIGITS$}")).collect();
        Stamp { e_tag: Some(e_tag.into()), version: None, writes }
    }

    #[test]
    fn a_stamp_is_its_text() {
        let full = Stamp { version: Some("7".into()), ..stamp("\"abc\"", &["1", "2"]) };
        for stamp in [full, stamp("\"abc\"", &[])] {
            assert_eq!(Stamp::from_text(&stamp.to_text()), Some(stamp));
        }
        assert_eq!(Stamp::from_text("another store's revision"), None);
        assert_eq!(random(Service::S3).unwrap().len(), DIGITS);
    }

    #[test]
    fn a_write_is_known_by_its_number_and_not_by_its_contents() {
        let mine = Bytes::from_static(b"the same");
        let number = format!("{:0>DIGITS$}", "mine");
        let expected = stamp("\"1\"", &["a"]);
        let now = |e_tag, writes: &[&str]| Some((mine.clone(), stamp(e_tag, writes)));
        let judge = |now: Option<(Bytes, Stamp)>| standing(now.as_ref(), Some(&expected), &number, &mine);
        assert_eq!(judge(now("\"2\"", &["mine", "a"])), Standing::Replaced);
        assert_eq!(judge(now("\"3\"", &["other", "mine", "a"])), Standing::Replaced);
        assert_eq!(judge(now("\"2\"", &["other", "a"])), Standing::Lost);
        assert_eq!(judge(now("\"1\"", &["a"])), Standing::Unchanged);
        assert_eq!(judge(now("\"2\"", &[])), Standing::Replaced);
        assert_eq!(judge(None), Standing::Lost);

        let mut many = vec!["other"; REMEMBERED];
        assert_eq!(judge(now("\"9\"", &many)), Standing::Forgotten);
        many[REMEMBERED - 1] = "a";
        assert_eq!(judge(now("\"9\"", &many)), Standing::Lost);
        many[REMEMBERED - 2] = "mine";
        assert_eq!(judge(now("\"9\"", &many)), Standing::Replaced);
    }
}
