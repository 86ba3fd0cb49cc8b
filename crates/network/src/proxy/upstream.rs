//! The way to a server: straight, or by a proxy of the operator's.
//!
//! A proxy is asked for the address that the VM wanted, never for a name: that address is what the floor has judged and
//! what the VM's own lookup gave.

use super::relay;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use std::fmt;
use std::io;
use std::net::{SocketAddr, SocketAddrV4};
use std::str::FromStr;
use tokio::net::{TcpStream, lookup_host};

/// The longest answer to CONNECT.
const LONGEST: usize = 16 << 10;
/// The longest user name or password that SOCKS5 carries.
const LONGEST_SECRET: usize = 255;
const FORM: &str = "write it as http://USER:PASSWORD@HOST:PORT or socks5://USER:PASSWORD@HOST:PORT; USER:PASSWORD@ may be left out";

/// A proxy by which connections leave.
#[derive(Clone, PartialEq, Eq)]
pub struct UpstreamProxy {
    kind: Kind,
    host: String,
    port: u16,
    user: Option<(String, String)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Connect,
    Socks5,
}

/// Why a text names no proxy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}: {FORM}")]
pub struct UpstreamProxyError(&'static str);

impl fmt::Debug for UpstreamProxy {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The password stays out of logs.
        write!(to, "{:?} {}:{}", self.kind, self.host, self.port)
    }
}

impl FromStr for UpstreamProxy {
    type Err = UpstreamProxyError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = |what| Err(UpstreamProxyError(what));
        let (kind, rest) = match text.split_once("://") {
            Some(("http", rest)) => (Kind::Connect, rest),
            Some(("socks5", rest)) => (Kind::Socks5, rest),
            Some(_) => return wrong("the scheme is neither http nor socks5"),
            None => return wrong("there is no scheme"),
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (user, place) = match rest.rsplit_once('@') {
            None => (None, rest),
            Some((user, place)) => match user.split_once(':') {
                Some((name, password)) => (Some((decoded(name)?, decoded(password)?)), place),
                None => return wrong("there is a user without a password"),
            },
        };
        let secret = |text: &String| !text.is_empty() && text.len() <= LONGEST_SECRET;
        if user.as_ref().is_some_and(|(name, password)| {
            !secret(name) || !secret(password) || name.contains(':')
        }) {
            return wrong("user and password are 1 to 255 bytes each, and no user has a colon");
        }
        let (host, port) = match place.rsplit_once(':') {
            Some((host, port)) => (host, port.parse().unwrap_or(0)),
            None => return wrong("there is no port"),
        };
        let host = host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'))
            .unwrap_or(host);
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b".-_:".contains(&byte);
        if port == 0 || host.is_empty() || !host.bytes().all(plain) {
            return wrong("host or port is none");
        }
        Ok(Self {
            kind,
            host: host.to_owned(),
            port,
            user,
        })
    }
}

/// Undoes `%40` and the like.
fn decoded(text: &str) -> Result<String, UpstreamProxyError> {
    let wrong = UpstreamProxyError("user or password has a percent sign that stands for nothing");
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let (digits, after) = rest.split_at_checked(2).ok_or_else(|| wrong.clone())?;
        let digits = std::str::from_utf8(digits).map_err(|_| wrong.clone())?;
        bytes.push(u8::from_str_radix(digits, 16).map_err(|_| wrong.clone())?);
        rest = after;
    }
    String::from_utf8(bytes).map_err(|_| wrong)
}

/// Connects to a server; what it has said already comes with it.
pub(super) async fn connect(
    by: Option<&UpstreamProxy>,
    to: SocketAddrV4,
) -> io::Result<(TcpStream, Vec<u8>)> {
    let Some(proxy) = by else {
        return Ok((TcpStream::connect(SocketAddr::V4(to)).await?, Vec::new()));
    };
    let stream = proxy.reach().await?;
    match proxy.kind {
        Kind::Connect => {
            let said = proxy.ask(&stream, to).await?;
            Ok((stream, said))
        }
        Kind::Socks5 => {
            proxy.greet(&stream).await?;
            proxy.request(&stream, to).await?;
            Ok((stream, Vec::new()))
        }
    }
}

impl UpstreamProxy {
    async fn reach(&self) -> io::Result<TcpStream> {
        let mut last = io::Error::from(io::ErrorKind::NotFound);
        for address in lookup_host((self.host.as_str(), self.port)).await? {
            match TcpStream::connect(address).await {
                Ok(stream) => {
                    // Small pieces go at once; without it works too.
                    let _ = stream.set_nodelay(true);
                    return Ok(stream);
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// CONNECT of HTTP; what came behind the answer's head.
    async fn ask(&self, stream: &TcpStream, to: SocketAddrV4) -> io::Result<Vec<u8>> {
        let mut head = format!("CONNECT {to} HTTP/1.1\r\nHost: {to}\r\n");
        if let Some((user, password)) = &self.user {
            let secret = BASE64_STANDARD.encode(format!("{user}:{password}"));
            head += &format!("Proxy-Authorization: Basic {secret}\r\n");
        }
        head += "\r\n";
        relay::write(stream, head.as_bytes()).await?;
        let mut said = Vec::new();
        let mut buffer = [0; 4096];
        loop {
            let count = relay::read(stream, &mut buffer).await?;
            said.extend_from_slice(&buffer[..count]);
            let mut headers = [httparse::EMPTY_HEADER; 64];
            let mut answer = httparse::Response::new(&mut headers);
            match answer.parse(&said).map_err(io::Error::other)? {
                httparse::Status::Partial if count > 0 && said.len() < LONGEST => {}
                httparse::Status::Partial => return Err(refused("no whole answer")),
                httparse::Status::Complete(length) => {
                    return match answer.code {
                        Some(200..=299) => Ok(said.split_off(length)),
                        code => Err(refused(&format!("status {}", code.unwrap_or(0)))),
                    };
                }
            }
        }
    }

    /// The ways of SOCKS5 to prove who one is: none, or user and password.
    async fn greet(&self, stream: &TcpStream) -> io::Result<()> {
        let way = u8::from(self.user.is_some()) * 2;
        relay::write(stream, &[5, 1, way]).await?;
        if exactly::<2>(stream).await? != [5, way] {
            return Err(refused("it takes no such authentication"));
        }
        let Some((user, password)) = &self.user else {
            return Ok(());
        };
        let counted = |text: &str| {
            // Both were found to be short enough when they were read.
            let length = u8::try_from(text.len()).unwrap_or(u8::MAX);
            [&[length][..], text.as_bytes()].concat()
        };
        let proof = [&[1][..], &counted(user), &counted(password)].concat();
        relay::write(stream, &proof).await?;
        match exactly::<2>(stream).await? {
            [_, 0] => Ok(()),
            _ => Err(refused("it does not take user and password")),
        }
    }

    async fn request(&self, stream: &TcpStream, to: SocketAddrV4) -> io::Result<()> {
        let mut request = vec![5, 1, 0, 1];
        request.extend(to.ip().octets());
        request.extend(to.port().to_be_bytes());
        relay::write(stream, &request).await?;
        let [version, reply, _, kind] = exactly::<4>(stream).await?;
        if version != 5 || reply != 0 {
            return Err(refused(&format!("reply {reply}")));
        }
        match kind {
            1 => exactly::<6>(stream).await.map(|_| ()),
            4 => exactly::<18>(stream).await.map(|_| ()),
            3 => {
                let [length] = exactly::<1>(stream).await?;
                for _ in 0..usize::from(length) + 2 {
                    exactly::<1>(stream).await?;
                }
                Ok(())
            }
            _ => Err(refused("an address of no known kind")),
        }
    }
}

fn refused(why: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::ConnectionRefused,
        format!("the upstream proxy does not connect: {why}"),
    )
}

async fn exactly<const COUNT: usize>(stream: &TcpStream) -> io::Result<[u8; COUNT]> {
    let mut bytes = [0; COUNT];
    let mut read = 0;
    while read < COUNT {
        let count = relay::read(stream, &mut bytes[read..]).await?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        read += count;
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxy_is_read_and_its_password_not_shown() {
        let proxy: UpstreamProxy = "http://ann:p%40ss:w@proxy.corp:3128/".parse().unwrap();
        assert_eq!(proxy.user, Some(("ann".to_owned(), "p@ss:w".to_owned())));
        assert_eq!((proxy.host.as_str(), proxy.port), ("proxy.corp", 3128));
        assert!(!format!("{proxy:?}").contains("p@ss"));
        let proxy: UpstreamProxy = "socks5://[::1]:1080".parse().unwrap();
        assert_eq!((proxy.kind, proxy.host.as_str()), (Kind::Socks5, "::1"));
    }

    #[test]
    fn what_is_no_proxy_is_refused_with_what_to_do() {
        for text in [
            "",
            "proxy:3128",
            "https://proxy:3128",
            "http://proxy",
            "http://proxy:0",
            "http://proxy:99999",
            "http://:3128",
            "http://user@proxy:3128",
            "http://:secret@proxy:3128",
            "http://user:@proxy:3128",
            "http://user:%zz@proxy:3128",
            "http://user:%2@proxy:3128",
            "http://a b:3128",
            "http://proxy:3128/path",
        ] {
            let error = text.parse::<UpstreamProxy>().unwrap_err().to_string();
            assert!(error.contains("HOST:PORT"), "{text}: {error}");
        }
    }
}
