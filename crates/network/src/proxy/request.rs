//! HTTP requests, as far as they name a host and tell where the next one begins.
//!
//! The proxy and the server must agree on where a request ends: what one takes for a body and the other for a further
//! request would carry a `Host` that nobody has looked at. So everything that readers are known to disagree on is
//! malformed here: line feeds alone, two lengths, unusual codings, folded lines.

use std::ops::ControlFlow;

/// The longest head of a request, the longest line of a chunk, and the longest trailer.
pub(super) const LONGEST_HEAD: usize = 64 << 10;
const LONGEST_LINE: usize = 1 << 10;
const LONGEST_TRAILER: usize = 16 << 10;
const HEADERS: usize = 128;

/// The bytes are no request, or one that could be read in two ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Malformed;

/// The head of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Head {
    /// How many bytes it takes, with the empty line.
    pub(super) length: usize,
    /// The host, without its port; none when the request names none.
    pub(super) host: Option<String>,
    /// What follows.
    pub(super) body: Body,
    /// It asks to go on as a WebSocket.
    pub(super) websocket: bool,
}

/// Reads the head of a request; `None` while more is needed.
pub(super) fn head(sent: &[u8]) -> Result<Option<Head>, Malformed> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    // Something else than a request is told by its first bytes.
    let length = match request.parse(sent) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) if sent.len() < LONGEST_HEAD => return Ok(None),
        _ => return Err(Malformed),
    };
    if bare_line_feed(&sent[..length]) || sent.starts_with(b"\r") {
        return Err(Malformed);
    }
    let target = request.path.unwrap_or_default();
    if request.method == Some("CONNECT") {
        return Err(Malformed);
    }
    let mut facts = Facts::default();
    for header in request.headers.iter() {
        facts.note(header.name, header.value)?;
    }
    let body = match (facts.chunked, facts.length) {
        (true, None) if request.version == Some(1) => Body::chunked(),
        (false, length) => Body::Bytes(length.unwrap_or(0)),
        _ => return Err(Malformed),
    };
    Ok(Some(Head {
        length,
        host: agreed_host(target, facts.host)?,
        body,
        websocket: facts.websocket && facts.upgrade,
    }))
}

fn bare_line_feed(bytes: &[u8]) -> bool {
    bytes
        .iter()
        .enumerate()
        .any(|(at, byte)| *byte == b'\n' && (at == 0 || bytes[at - 1] != b'\r'))
}

#[derive(Debug, Default)]
struct Facts {
    host: Option<String>,
    length: Option<u64>,
    chunked: bool,
    websocket: bool,
    upgrade: bool,
}

impl Facts {
    fn note(&mut self, name: &str, value: &[u8]) -> Result<(), Malformed> {
        let is = |other: &str| name.eq_ignore_ascii_case(other);
        let value = || {
            std::str::from_utf8(value)
                .map(|v| v.trim_matches([' ', '\t']))
                .map_err(|_| Malformed)
        };
        if is("host") {
            let host = without_port(value()?)?.to_owned();
            if self.host.replace(host).is_some() {
                return Err(Malformed);
            }
        } else if is("content-length") {
            let digits = value()?;
            let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
            let length = digits.parse().ok().filter(|_| plain).ok_or(Malformed)?;
            if self.length.replace(length).is_some() {
                return Err(Malformed);
            }
        } else if is("transfer-encoding") {
            if self.chunked || !value()?.eq_ignore_ascii_case("chunked") {
                return Err(Malformed);
            }
            self.chunked = true;
        } else if is("upgrade") {
            self.websocket = value()?.eq_ignore_ascii_case("websocket");
        } else if is("connection") {
            let mut words = value()?.split(',');
            self.upgrade |= words.any(|word| word.trim().eq_ignore_ascii_case("upgrade"));
        }
        Ok(())
    }
}

/// The one host of a request: a target that is a whole URL must name the same as `Host`.
fn agreed_host(target: &str, header: Option<String>) -> Result<Option<String>, Malformed> {
    if target.starts_with('/') || target == "*" {
        return Ok(header);
    }
    let scheme = target
        .get(..7)
        .filter(|start| start.eq_ignore_ascii_case("http://"));
    let rest = scheme.map(|_| &target[7..]).ok_or(Malformed)?;
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let named = without_port(&rest[..end])?;
    match header {
        Some(header) if header.eq_ignore_ascii_case(named) => Ok(Some(header)),
        _ => Err(Malformed),
    }
}

/// The host of an authority without its port.
fn without_port(authority: &str) -> Result<&str, Malformed> {
    if !authority.is_ascii() || authority.contains('@') {
        return Err(Malformed);
    }
    let bracket = authority.rfind(']').unwrap_or(0);
    match authority[bracket..].split_once(':') {
        None => Ok(authority),
        Some((start, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => {
            Ok(&authority[..bracket + start.len()])
        }
        Some(_) => Err(Malformed),
    }
}

/// The body of a request, as far as it has not passed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Body {
    /// This many bytes.
    Bytes(u64),
    /// Chunks.
    Chunks(Chunks),
}

/// Where in a chunked body the next byte is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Chunks {
    at: Place,
    /// Bytes of the line that is being read, which ends with CR LF.
    line: Vec<u8>,
    /// Bytes of trailers so far.
    trailer: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Size,
    Data(u64),
    AfterData,
    Trailer,
}

impl Body {
    fn chunked() -> Self {
        Self::Chunks(Chunks {
            at: Place::Size,
            line: Vec::new(),
            trailer: 0,
        })
    }

    /// How many of the next bytes belong to the body, and whether it ends with them.
    pub(super) fn pass(&mut self, bytes: &[u8]) -> Result<(usize, bool), Malformed> {
        match self {
            Self::Bytes(left) => {
                let passing = usize::try_from(*left)
                    .unwrap_or(usize::MAX)
                    .min(bytes.len());
                *left -= passing as u64;
                Ok((passing, *left == 0))
            }
            Self::Chunks(chunks) => chunks.pass(bytes),
        }
    }
}

impl Chunks {
    fn pass(&mut self, bytes: &[u8]) -> Result<(usize, bool), Malformed> {
        let mut passed = 0;
        while passed < bytes.len() {
            if let Place::Data(left) = &mut self.at {
                let more = bytes.len() - passed;
                let data = usize::try_from(*left).unwrap_or(usize::MAX).min(more);
                *left -= data as u64;
                passed += data;
                if *left == 0 {
                    self.at = Place::AfterData;
                }
                continue;
            }
            let byte = bytes[passed];
            passed += 1;
            if self.line.len() >= LONGEST_LINE {
                return Err(Malformed);
            }
            if byte != b'\n' {
                // A return may only stand before the line feed.
                if self.line.last() == Some(&b'\r') {
                    return Err(Malformed);
                }
                self.line.push(byte);
                continue;
            }
            if self.line.pop() != Some(b'\r') {
                return Err(Malformed);
            }
            if self.line_ends()?.is_break() {
                return Ok((passed, true));
            }
        }
        Ok((passed, false))
    }

    fn line_ends(&mut self) -> Result<ControlFlow<()>, Malformed> {
        let line = std::mem::take(&mut self.line);
        self.at = match self.at {
            Place::Size => match size(&line)? {
                0 => Place::Trailer,
                size => Place::Data(size),
            },
            Place::AfterData if line.is_empty() => Place::Size,
            Place::Trailer if line.is_empty() => return Ok(ControlFlow::Break(())),
            Place::Trailer => {
                self.trailer += line.len();
                if self.trailer > LONGEST_TRAILER {
                    return Err(Malformed);
                }
                Place::Trailer
            }
            Place::AfterData | Place::Data(_) => return Err(Malformed),
        };
        Ok(ControlFlow::Continue(()))
    }
}

/// The size at the beginning of a chunk's line.
fn size(line: &[u8]) -> Result<u64, Malformed> {
    let end = line
        .iter()
        .position(|byte| *byte == b';')
        .unwrap_or(line.len());
    let digits = &line[..end];
    if digits.is_empty() || digits.len() > 15 || !digits.iter().all(u8::is_ascii_hexdigit) {
        return Err(Malformed);
    }
    let digits = std::str::from_utf8(digits).map_err(|_| Malformed)?;
    u64::from_str_radix(digits, 16).map_err(|_| Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn whole(text: &str) -> Head {
        head(text.as_bytes()).unwrap().unwrap()
    }

    fn host(text: &str) -> Option<String> {
        whole(&format!("GET / HTTP/1.1\r\n{text}\r\n")).host
    }

    #[test]
    fn the_host_is_found_without_its_port() {
        for (line, found) in [
            ("Host: a.test\r\n", Some("a.test")),
            ("hOsT:\t A.test:8080 \r\n", Some("A.test")),
            ("Host: a.test:\r\n", Some("a.test")),
            ("Host: [::1]:80\r\n", Some("[::1]")),
            ("Host: 1.2.3.4\r\n", Some("1.2.3.4")),
            ("Host:\r\n", Some("")),
            ("X-Host: a.test\r\n", None),
        ] {
            assert_eq!(host(line).as_deref(), found, "{line}");
        }
        let absolute = whole("GET http://a.test:80/x?y HTTP/1.1\r\nHost: a.test\r\n\r\n");
        assert_eq!(absolute.host.as_deref(), Some("a.test"));
    }

    #[test]
    fn a_head_in_pieces_is_awaited() {
        let text = b"POST /x HTTP/1.1\r\nHost: a.test\r\nContent-Length: 5\r\n\r\nhello";
        let end = text.len() - 5;
        for cut in 0..end {
            assert_eq!(head(&text[..cut]), Ok(None), "{cut}");
        }
        let head = head(text).unwrap().unwrap();
        assert_eq!((head.length, head.body), (end, Body::Bytes(5)));
    }

    #[test]
    fn what_can_be_read_in_two_ways_is_malformed() {
        for lines in [
            "Host: a.test\r\nHost: b.test\r\n",
            "Host: a.test\nX: y\r\n",
            "X: a\nContent-Length: 50\r\nHost: a.test\r\n",
            "Host: a.test\r\nContent-Length: 5\r\nContent-Length: 5\r\n",
            "Host: a.test\r\nContent-Length: 5, 5\r\n",
            "Host: a.test\r\nContent-Length: +5\r\n",
            "Host: a.test\r\nContent-Length: 0x5\r\n",
            "Host: a.test\r\nContent-Length: 99999999999999999999999\r\n",
            "Host: a.test\r\nContent-Length:\r\n",
            "Host: a.test\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n",
            "Host: a.test\r\nTransfer-Encoding: gzip, chunked\r\n",
            "Host: a.test\r\nTransfer-Encoding: xchunked\r\n",
            "Host: a.test\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
            "Host: a.test\r\n X: folded\r\n",
            "Host : a.test\r\n",
            "Host: user@a.test\r\n",
            "Host: a.test:80x\r\n",
            "Host: a.test:80:80\r\n",
            "Host: \u{e9}.test\r\n",
            "Host: a.test\r\nX: \0\r\n",
        ] {
            let text = format!("GET / HTTP/1.1\r\n{lines}\r\n");
            assert_eq!(head(text.as_bytes()), Err(Malformed), "{lines:?}");
        }
        for text in [
            "GET http://b.test/ HTTP/1.1\r\nHost: a.test\r\n\r\n",
            "GET https://a.test/ HTTP/1.1\r\nHost: a.test\r\n\r\n",
            "GET //b.test HTTP/2.0\r\nHost: a.test\r\n\r\n",
            "CONNECT b.test:443 HTTP/1.1\r\nHost: a.test\r\n\r\n",
            "GET a.test/ HTTP/1.1\r\nHost: a.test\r\n\r\n",
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            "POST / HTTP/1.0\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n",
            "\r\nGET / HTTP/1.1\r\nHost: a.test\r\n\r\n",
            "\u{16}\u{3}\u{1}\u{2}",
            "SSH-2.0-OpenSSH\r\n",
        ] {
            assert_eq!(head(text.as_bytes()), Err(Malformed), "{text:?}");
        }
    }

    #[test]
    fn heads_are_bounded() {
        let long = format!(
            "GET / HTTP/1.1\r\nHost: a.test\r\nX: {}",
            "x".repeat(LONGEST_HEAD)
        );
        assert_eq!(head(long.as_bytes()), Err(Malformed));
        let many = format!("GET / HTTP/1.1\r\n{}\r\n", "X: y\r\n".repeat(HEADERS + 1));
        assert_eq!(head(many.as_bytes()), Err(Malformed));
    }

    #[test]
    fn a_chunked_body_ends_where_it_says() {
        let text = b"4\r\nWiki\r\n5;x=y\r\npedia\r\nA\r\n0123456789\r\n0\r\nTrailer: x\r\n\r\nGET / HTTP/1.1\r\n";
        let end = text.len() - 16;
        for step in 1..text.len() {
            let mut body = Body::chunked();
            let mut at = 0;
            loop {
                let piece = &text[at..text.len().min(at + step)];
                let (passed, over) = body.pass(piece).unwrap();
                at += passed;
                if over {
                    break;
                }
            }
            assert_eq!(at, end, "in steps of {step}");
        }
        for bad in [
            "4\nWiki\r\n",
            "4\r\nWikiX\r\n",
            "x\r\n",
            "\r\n",
            "-1\r\n",
            "+4\r\n",
            "0x4\r\n",
            " 4\r\n",
            "4\r\nWiki\n",
            "0\r\nX: y\n\r\n",
            "4\rx\r\n",
            "10000000000000000\r\n",
        ] {
            assert_eq!(
                Body::chunked().pass(bad.as_bytes()),
                Err(Malformed),
                "{bad:?}"
            );
        }
        let endless = format!("4;{}", "x".repeat(LONGEST_LINE));
        assert_eq!(Body::chunked().pass(endless.as_bytes()), Err(Malformed));
        let trailers = format!("0\r\n{}", "x: y\r\n".repeat(LONGEST_TRAILER));
        assert_eq!(Body::chunked().pass(trailers.as_bytes()), Err(Malformed));
    }

    #[test]
    fn websockets_are_told() {
        let upgrade = "GET / HTTP/1.1\r\nHost: a.test\r\nConnection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\n\r\n";
        assert!(whole(upgrade).websocket);
        let other = "GET / HTTP/1.1\r\nHost: a.test\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n";
        assert!(!whole(other).websocket);
    }

    /// The files of the corpus begin with what they are.
    #[test]
    fn fuzz_corpus() {
        for (file, bytes) in crate::corpus::files("request") {
            let right = match head(&bytes) {
                Ok(Some(Head {
                    host: Some(host), ..
                })) => file.starts_with("name-") && host == "allowed.test",
                Ok(Some(_)) => file.starts_with("none-"),
                Ok(None) => file.starts_with("more-"),
                Err(Malformed) => file.starts_with("bad-"),
            };
            assert!(right, "{file}: {:?}", head(&bytes));
        }
    }

    proptest! {
        #[test]
        fn fuzz_corpus_changed(bytes in crate::corpus::changed("request"), piece in 1usize..40) {
            if let Ok(Some(head)) = head(&bytes) {
                prop_assert!(head.length <= bytes.len());
                // A body passes the same way in any pieces.
                let rest = &bytes[head.length..];
                let whole = head.body.clone().pass(rest);
                let (mut body, mut passed) = (head.body, 0);
                for part in rest.chunks(piece) {
                    match body.pass(part) {
                        Ok((count, over)) => {
                            passed += count;
                            if over {
                                break;
                            }
                        }
                        Err(Malformed) => {
                            prop_assert_eq!(whole, Err(Malformed));
                            return Ok(());
                        }
                    }
                }
                if let Ok((count, _)) = whole {
                    prop_assert_eq!(passed, count);
                }
            }
        }

        #[test]
        fn fuzz_no_bytes_make_reading_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let _ = head(&bytes);
            let _ = Body::chunked().pass(&bytes);
        }

        #[test]
        fn a_changed_request_is_read_or_malformed(at in 0usize..90, value: u8) {
            let mut text = b"POST http://a.test/ HTTP/1.1\r\nHost: a.test:80\r\nContent-Length: 5\r\nConnection: x\r\n\r\nhello".to_vec();
            let at = at % text.len();
            text[at] = value;
            if let Ok(Some(head)) = head(&text) {
                prop_assert!(head.length <= text.len());
            }
        }
    }
}
