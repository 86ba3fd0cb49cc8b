//! The first message of a TLS client, as far as it names the server.

/// The longest first message that is read.
pub(super) const LONGEST: usize = 32 << 10;

/// What the bytes of a client say so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Hello {
    /// More is needed.
    Incomplete,
    /// The whole message has come; the server's name, if it has one.
    Complete(Option<String>),
}

/// The bytes are no greeting of TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Malformed;

/// Reads what a client has sent so far.
pub(super) fn read(sent: &[u8]) -> Result<Hello, Malformed> {
    let mut message = Vec::new();
    let mut rest = Bytes(sent);
    loop {
        let Some(header) = rest.0.first_chunk::<5>() else {
            // What is there must already be right: nobody who speaks something else is waited for.
            let right = [22, 3];
            let known = rest.0.len().min(right.len());
            return if rest.0[..known] == right[..known] {
                Ok(Hello::Incomplete)
            } else {
                Err(Malformed)
            };
        };
        let length = usize::from(u16::from_be_bytes([header[3], header[4]]));
        if header[..2] != [22, 3] || length == 0 || length > 16 << 10 {
            return Err(Malformed);
        }
        let end = rest.0.len().min(5 + length);
        message.extend_from_slice(&rest.0[5..end]);
        if let Some(whole) = whole(&message)? {
            let (hello, after) = message.split_at(whole);
            // Nothing may follow in the same record: a client waits for the server.
            return if after.is_empty() && end == 5 + length {
                name(&hello[4..]).map(Hello::Complete)
            } else if after.is_empty() {
                Ok(Hello::Incomplete)
            } else {
                Err(Malformed)
            };
        }
        if end < 5 + length {
            return Ok(Hello::Incomplete);
        }
        rest = Bytes(&rest.0[end..]);
    }
}

/// The length of the first message with its header, when all of it is there.
fn whole(message: &[u8]) -> Result<Option<usize>, Malformed> {
    if message.first().is_some_and(|kind| *kind != 1) {
        return Err(Malformed);
    }
    let Some(header) = message.first_chunk::<4>() else {
        return Ok(None);
    };
    let length = u32::from_be_bytes([0, header[1], header[2], header[3]]);
    let whole = 4 + usize::try_from(length).map_err(|_| Malformed)?;
    if whole > LONGEST {
        return Err(Malformed);
    }
    Ok((message.len() >= whole).then_some(whole))
}

/// The server's name in the body of a client's greeting.
fn name(body: &[u8]) -> Result<Option<String>, Malformed> {
    let mut body = Bytes(body);
    body.take(2 + 32)?;
    if body.short()?.len() > 32 {
        return Err(Malformed);
    }
    let suites = body.long()?;
    if suites.is_empty() || suites.len() % 2 != 0 {
        return Err(Malformed);
    }
    if body.short()?.is_empty() {
        return Err(Malformed);
    }
    if body.0.is_empty() {
        return Ok(None);
    }
    let mut extensions = Bytes(body.long()?);
    if !body.0.is_empty() {
        return Err(Malformed);
    }
    let mut found = None;
    while !extensions.0.is_empty() {
        let kind = extensions.number()?;
        let content = extensions.long()?;
        if kind == 0 {
            if found.is_some() {
                return Err(Malformed);
            }
            found = Some(server_name(content)?);
        }
    }
    Ok(found)
}

/// The one name in the extension `server_name`.
fn server_name(content: &[u8]) -> Result<String, Malformed> {
    let mut content = Bytes(content);
    let mut list = Bytes(content.long()?);
    if !content.0.is_empty() || list.take(1)? != [0] {
        return Err(Malformed);
    }
    let name = list.long()?;
    if !list.0.is_empty() || name.is_empty() || !name.is_ascii() {
        return Err(Malformed);
    }
    String::from_utf8(name.to_vec()).map_err(|_| Malformed)
}

/// Bytes that are read from their beginning.
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(Malformed)?;
        self.0 = rest;
        Ok(taken)
    }

    fn number(&mut self) -> Result<u16, Malformed> {
        match self.take(2)? {
            [high, low] => Ok(u16::from_be_bytes([*high, *low])),
            _ => Err(Malformed),
        }
    }

    /// What follows one byte of length.
    fn short(&mut self) -> Result<&'a [u8], Malformed> {
        let length = self.take(1)?.first().copied().ok_or(Malformed)?;
        self.take(length.into())
    }

    /// What follows two bytes of length.
    fn long(&mut self) -> Result<&'a [u8], Malformed> {
        let length = self.number()?;
        self.take(length.into())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A greeting with these extensions, in records of at most `size` bytes.
    pub(crate) fn greeting(extensions: &[(u16, Vec<u8>)], size: usize) -> Vec<u8> {
        let long = |bytes: &[u8]| [&(bytes.len() as u16).to_be_bytes()[..], bytes].concat();
        let mut body = vec![3, 3];
        body.extend([7; 32]);
        body.push(0);
        body.extend(long(&[0x13, 1]));
        body.extend([1, 0]);
        let all: Vec<u8> = extensions
            .iter()
            .flat_map(|(kind, content)| [&kind.to_be_bytes()[..], &long(content)].concat())
            .collect();
        body.extend(long(&all));
        let mut message = vec![1, 0];
        message.extend(long(&body));
        message
            .chunks(size)
            .flat_map(|piece| [&[22, 3, 1][..], &long(piece)].concat())
            .collect()
    }

    pub(crate) fn naming(name: &str) -> (u16, Vec<u8>) {
        let long = |bytes: &[u8]| [&(bytes.len() as u16).to_be_bytes()[..], bytes].concat();
        (0, long(&[&[0][..], &long(name.as_bytes())].concat()))
    }

    #[test]
    fn the_name_is_found_in_any_pieces() {
        for size in [1, 2, 5, 40, 16_000] {
            let bytes = greeting(&[(10, vec![0, 1]), naming("a.test"), (16, vec![])], size);
            for end in 0..bytes.len() {
                assert_eq!(read(&bytes[..end]), Ok(Hello::Incomplete), "{size} {end}");
            }
            let found = Hello::Complete(Some("a.test".to_owned()));
            assert_eq!(read(&bytes), Ok(found), "{size}");
        }
    }

    #[test]
    fn a_greeting_without_a_name_is_complete() {
        assert_eq!(
            read(&greeting(&[(10, vec![])], 512)),
            Ok(Hello::Complete(None))
        );
    }

    #[test]
    fn what_can_be_read_in_two_ways_is_malformed() {
        let two = greeting(&[naming("a.test"), naming("b.test")], 512);
        assert_eq!(read(&two), Err(Malformed));
        let (kind, mut list) = naming("a.test");
        list[1] += 5;
        list.extend([0, 0, 2, b'b', b'c']);
        assert_eq!(read(&greeting(&[(kind, list)], 512)), Err(Malformed));
        let mut more = greeting(&[naming("a.test")], 512);
        more.push(0);
        more[4] += 1;
        assert_eq!(read(&more), Err(Malformed));
        for other in [
            &b"GET / HTTP/1.1\r\n"[..],
            b"SSH-2.0-x",
            &[0x80, 0x2e, 1],
            &[22, 2],
            &[23],
            &[22, 3, 1, 0, 0],
        ] {
            assert_eq!(read(other), Err(Malformed), "{other:?}");
        }
        let huge = [22, 3, 1, 0, 4, 1, 0xff, 0xff, 0xff];
        assert_eq!(read(&huge), Err(Malformed));
    }

    /// The files of the corpus begin with what they are.
    #[test]
    fn fuzz_corpus() {
        for (file, bytes) in crate::corpus::files("hello") {
            let right = match read(&bytes) {
                Ok(Hello::Complete(Some(name))) => {
                    file.starts_with("name-") && name == "allowed.test"
                }
                Ok(Hello::Complete(None)) => file.starts_with("none-"),
                Ok(Hello::Incomplete) => file.starts_with("more-"),
                Err(Malformed) => file.starts_with("bad-"),
            };
            assert!(right, "{file}: {:?}", read(&bytes));
        }
    }

    proptest! {
        #[test]
        fn fuzz_corpus_changed(bytes in crate::corpus::changed("hello")) {
            let whole = read(&bytes);
            // However it comes in pieces, what is said at the end is the same, and nothing else is said before.
            for end in 0..bytes.len() {
                let part = read(&bytes[..end]);
                if let Ok(Hello::Complete(_)) = part {
                    prop_assert!(part == whole || whole == Err(Malformed));
                }
            }
        }

        #[test]
        fn fuzz_no_bytes_make_reading_panic(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
            let _ = read(&bytes);
        }

        #[test]
        fn a_changed_greeting_is_read_or_malformed(at in 0usize..120, value: u8, size in 1usize..200) {
            let mut bytes = greeting(&[(10, vec![0, 1]), naming("a.test"), (16, vec![1; 20])], size);
            let at = at % bytes.len();
            bytes[at] = value;
            if let Ok(Hello::Complete(Some(name))) = read(&bytes) {
                prop_assert!(name.is_ascii());
            }
        }
    }
}
