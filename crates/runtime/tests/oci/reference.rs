//! References as people write them.

use instavm_runtime::image::oci::{OciError, Reference};
use proptest::prelude::*;

fn parse(text: &str) -> Result<Reference, OciError> {
    text.parse()
}

#[test]
fn what_is_not_written_is_filled_in() {
    let digest = format!("sha256:{}", "ab".repeat(32));
    let pinned = format!("debian@{digest}");
    let full = format!("docker.io/library/debian@{digest}");
    let both = format!("quay.io/a/b:v1@{digest}");
    let cases = [
        ("debian", "docker.io/library/debian:latest"),
        ("debian:12-slim", "docker.io/library/debian:12-slim"),
        ("user/image", "docker.io/user/image:latest"),
        ("docker.io/debian", "docker.io/library/debian:latest"),
        ("index.docker.io/debian", "docker.io/library/debian:latest"),
        ("localhost/image", "localhost/image:latest"),
        ("127.0.0.1:5000/image", "127.0.0.1:5000/image:latest"),
        ("[::1]:5000/a/b:c", "[::1]:5000/a/b:c"),
        ("Example.com/a", "Example.com/a:latest"),
        ("ghcr.io/a/b/c/d:T.1_x-y", "ghcr.io/a/b/c/d:T.1_x-y"),
        ("a/b__c/d---e/f.g", "docker.io/a/b__c/d---e/f.g:latest"),
        (&pinned, &full),
        (&both, &both),
    ];
    for (written, meant) in cases {
        assert_eq!(parse(written).unwrap().to_string(), meant, "{written}");
    }
}

#[test]
fn what_is_none_is_refused_with_the_reason() {
    let long = format!("a/{}", "b".repeat(300));
    let cases = [
        "",
        " debian",
        "debian ",
        "Debian",
        "debian:",
        "debian:-a",
        "debian:a/b",
        "debian@sha256:abc",
        "debian@md5:aabbccddeeff00112233445566778899",
        "a//b",
        "/a",
        "a/",
        "../etc/passwd",
        "a/../b",
        "a..b/c",
        "a/b___c",
        "-a/b",
        "exa_mple.com/a",
        "example.com:0/a",
        "example.com:99999/a",
        "example.com:port/a",
        "http://example.com/a",
        "user@example.com/a",
        "example.com/a?b",
        "example.com/a#b",
        "example.com/a%2fb",
        "[::1/a",
        "[::g]:5/a",
        "a\nb",
        "a\0b",
        &long,
    ];
    for written in cases {
        let error = parse(written).expect_err(written);
        assert!(matches!(error, OciError::Reference { .. }), "{written}");
        assert!(error.to_string().contains("no image reference"), "{error}");
    }
}

proptest! {
    #[test]
    fn nothing_that_is_written_ends_the_program(text in any::<String>()) {
        let _ = parse(&text);
    }

    #[test]
    fn what_was_understood_is_understood_again(
        text in "([a-z0-9.]{1,8}(:[0-9]{1,5})?/)?[a-z0-9._/-]{1,12}(:[a-zA-Z0-9._-]{1,6})?",
    ) {
        if let Ok(reference) = parse(&text) {
            let again = parse(&reference.to_string()).unwrap();
            prop_assert_eq!(reference, again);
        }
    }

    #[test]
    fn nothing_understood_can_lead_elsewhere_in_a_path(text in "[a-zA-Z0-9._:/@?#%\\[\\]-]{1,24}") {
        if let Ok(reference) = parse(&text) {
            let repository = reference.repository();
            prop_assert!(repository.split('/').all(|part| !part.is_empty() && part != "." && part != ".."));
            prop_assert!(repository.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-/".contains(&b)));
            prop_assert!(!reference.host().contains(['/', '@', '?', '#', '%']));
        }
    }
}
