//! Messages about a wrong URL, setting or server. The server is a stub on loopback with one answer
//! for everything.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::thread;

use deltaloom::Error;
use deltaloom::series::Store;
use deltaloom_object_store::{Cause, Fault, fault, is_url, open, open_with};

/// Answers every connection with the same bytes until the test ends.
fn stub(status: &str, headers: &str, body: &str) -> SocketAddr {
    let length = body.len();
    let answer =
        format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n{headers}\r\n{body}");
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("its address");
    thread::spawn(move || {
        for mut client in listener.incoming().flatten() {
            let mut request = [0; 1 << 14];
            if client.read(&mut request).is_ok_and(|read| read > 0) {
                let _ = client.write_all(answer.as_bytes());
            }
        }
    });
    address
}

/// A store at the stub, with a key.
fn store_at(address: SocketAddr) -> impl Store {
    let settings = [
        ("AWS_ENDPOINT", format!("http://{address}").as_str()),
        ("AWS_ALLOW_HTTP", "true"),
        ("AWS_ACCESS_KEY_ID", "key"),
        ("AWS_SECRET_ACCESS_KEY", "secret"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()));
    open_with("s3://bucket/series", &settings).expect("a store")
}

fn cause<T>(result: deltaloom::Result<T>) -> (Cause, Error) {
    let Err(error) = result else { panic!("it did not fail") };
    let Error::Io { source, .. } = &error else { panic!("another error: {error}") };
    let fault = source.get_ref().and_then(|inner| inner.downcast_ref::<Fault>());
    (fault.unwrap_or_else(|| panic!("no fault: {error}")).cause(), error)
}

#[test]
fn urls_that_are_no_store_are_refused() {
    for (url, says) in [
        ("ftp://host/a", "unknown scheme"),
        ("s3://", "names no bucket"),
        ("s3://bucket/a?region=x", "query"),
        ("no url", "relative URL"),
    ] {
        let Err(error) = open(url) else { panic!("{url} was opened") };
        assert!(matches!(error, Error::InvalidArgument(_)) && error.to_string().contains(says), "{error}");
    }
    assert!(is_url("s3://bucket") && is_url("file:///tmp/a"));
    assert!(!is_url("dir/s3:/a") && !is_url("./a b://c"));
}

#[test]
fn settings_that_make_no_store_are_refused() {
    let half = [("AWS_ACCESS_KEY_ID".to_owned(), "key".to_owned())];
    assert_eq!(cause(open_with("s3://bucket/a", &half)).0, Cause::NoCredentials);
    assert_eq!(cause(open_with("az://container/a", &[])).0, Cause::NoCredentials);
    let wrong = [("AWS_ALLOW_HTTP".to_owned(), "perhaps".to_owned())];
    assert_eq!(cause(open_with("s3://bucket/a", &wrong)).0, Cause::Settings);
}

#[test]
fn answers_of_servers_are_told_by_who_must_act() {
    let xml = |code: &str| format!("<Error><Code>{code}</Code><Message>m</Message></Error>");
    for (status, body, expected) in [
        ("301 Moved Permanently", xml("PermanentRedirect"), Cause::WrongRegion),
        ("400 Bad Request", xml("AuthorizationHeaderMalformed"), Cause::WrongRegion),
        ("403 Forbidden", xml("AccessDenied"), Cause::Denied),
        ("400 Bad Request", xml("InvalidAccessKeyId"), Cause::Denied),
        ("403 Forbidden", xml("RequestTimeTooSkewed"), Cause::ClockSkew),
        ("400 Bad Request", xml("ExpiredToken"), Cause::Expired),
        ("404 Not Found", xml("NoSuchBucket"), Cause::NoBucket),
        ("418 I'm a teapot", xml("Teapot"), Cause::Other),
    ] {
        let store = store_at(stub(status, "", &body));
        let (found, error) = cause(store.read_manifest());
        assert_eq!(found, expected, "{error}");
        assert!(error.to_string().starts_with("s3://bucket/series/series.json: "), "{error}");
        assert_eq!(fault(&error).and_then(Fault::hint).is_some(), expected != Cause::Other);
        if expected == Cause::NoBucket {
            assert_eq!(cause(store.open("objects/a")).0, Cause::NoBucket);
        }
    }
    let absent = store_at(stub("404 Not Found", "", &xml("NoSuchKey")));
    assert!(absent.read_manifest().unwrap().is_none());
    assert!(matches!(absent.open("objects/a"), Err(Error::NotFound { .. })));
}

#[test]
fn credentials_that_a_machine_does_not_have_are_asked_for() {
    let address = stub("404 Not Found", "", "");
    let settings = [
        ("AWS_ENDPOINT".to_owned(), format!("http://{address}")),
        ("AWS_METADATA_ENDPOINT".to_owned(), format!("http://{address}")),
        ("AWS_ALLOW_HTTP".to_owned(), "true".to_owned()),
    ];
    let store = open_with("s3://bucket/a", &settings).unwrap();
    let (found, error) = cause(store.read_manifest());
    assert_eq!(found, Cause::NoCredentials, "{error}");
    assert!(fault(&error).and_then(Fault::hint).is_some_and(|hint| hint.contains("AWS_SECRET_ACCESS_KEY")));
}

#[test]
fn a_web_page_is_no_store() {
    let page = "\n<!DOCTYPE html><html>log in to this network</html>";
    let store = store_at(stub("200 OK", "Last-Modified: Sun, 22 Nov 2026 12:00:00 GMT\r\n", page));
    let (found, error) = cause(store.read_manifest());
    assert_eq!(found, Cause::NoStore, "{error}");
}

#[test]
fn a_server_that_ignores_conditions_is_refused() {
    let store = store_at(stub("200 OK", "ETag: \"e\"\r\n", ""));
    let (found, error) = cause(store.replace_manifest(b"manifest", None));
    assert_eq!(found, Cause::NoConditions, "{error}");
    assert!(error.to_string().contains("If-None-Match"), "{error}");
}

#[test]
fn a_manifest_beyond_all_measure_is_refused_unread() {
    let headers = "ETag: \"e\"\r\nLast-Modified: Sun, 22 Nov 2026 12:00:00 GMT\r\n";
    let address = {
        // Announces a petabyte and sends none of it.
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: 1000000000000000\r\n{headers}\r\n");
        thread::spawn(move || {
            for mut client in listener.incoming().flatten() {
                let _ = client.read(&mut [0; 1 << 14]);
                let _ = client.write_all(answer.as_bytes());
            }
        });
        address
    };
    assert_eq!(cause(store_at(address).read_manifest()).0, Cause::BadAnswer);
}
