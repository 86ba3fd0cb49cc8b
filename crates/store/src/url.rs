//! The URL of a PostgreSQL database.

use sqlx::postgres::PgConnectOptions;
use std::fmt;
use std::str::FromStr;

/// What the server shows of us in its list of connections.
const APPLICATION: &str = "instavmd";
/// What may stand behind the question mark of a URL.
const PARAMETERS: &[&str] = &[
    "application_name",
    "host",
    "password",
    "port",
    "sslcert",
    "sslkey",
    "sslmode",
    "sslrootcert",
    "user",
];

/// Where a PostgreSQL database is and who we are there. Shown without name and password of the user.
#[derive(Clone)]
pub struct PostgresUrl {
    options: PgConnectOptions,
    place: String,
}

/// Why a text is no URL of a PostgreSQL database. Never holds any of the text: there is a password in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UrlFault {
    /// It begins with something else.
    #[error(
        "must be like postgres://USER:PASSWORD@HOST:PORT/DATABASE?sslmode=require (the value is not shown)"
    )]
    Scheme,
    /// It cannot be taken apart, or not in the way that was meant.
    #[error(
        "cannot be taken apart: in the user's name, the password and all else, `/`, `?`, `#`, `@` and `%` are written \
         as %2F, %3F, %23, %40 and %25 (the value is not shown)"
    )]
    Form,
    /// It does not name the database.
    #[error("does not name the database: it stands behind the host, as in postgres://HOST/instavm")]
    NoDatabase,
    /// It has a parameter that means nothing to us.
    #[error(
        "has an unknown parameter; known are application_name, host, password, port, sslcert, sslkey, sslmode, \
         sslrootcert and user"
    )]
    Parameter,
    /// There is no such way to use TLS.
    #[error("sslmode must be disable, allow, prefer, require, verify-ca or verify-full")]
    Tls,
}

impl FromStr for PostgresUrl {
    type Err = UrlFault;

    fn from_str(text: &str) -> Result<Self, UrlFault> {
        let rest = ["postgres://", "postgresql://"]
            .iter()
            .find_map(|scheme| text.strip_prefix(scheme))
            .ok_or(UrlFault::Scheme)?;
        let (front, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (_authority, path) = front.split_once('/').ok_or(UrlFault::NoDatabase)?;
        // A character that ought to be written otherwise puts a part of the password where it would be shown.
        if rest.contains('#') || path.contains(['@', '/']) || query.contains(['@', '?']) {
            return Err(UrlFault::Form);
        }
        if path.is_empty() {
            return Err(UrlFault::NoDatabase);
        }
        for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
            let (name, value) = parameter.split_once('=').ok_or(UrlFault::Form)?;
            if !PARAMETERS.contains(&name) {
                return Err(UrlFault::Parameter);
            }
            if name == "sslmode" && value.parse::<sqlx::postgres::PgSslMode>().is_err() {
                return Err(UrlFault::Tls);
            }
        }
        let mut options: PgConnectOptions = text.parse().map_err(|_| UrlFault::Form)?;
        let bare = options
            .get_host()
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'))
            .map(str::to_owned);
        if let Some(address) = bare {
            options = options.host(&address);
        }
        if options.get_application_name().is_none() {
            options = options.application_name(APPLICATION);
        }
        let place = place(&options);
        Ok(PostgresUrl { options, place })
    }
}

fn place(options: &PgConnectOptions) -> String {
    let name = options.get_database().unwrap_or_default();
    match options.get_socket() {
        Some(folder) => format!("{name} at {}:{}", folder.display(), options.get_port()),
        None => format!("{name} at {}:{}", options.get_host(), options.get_port()),
    }
}

impl PostgresUrl {
    /// The database's name and where its server is: for messages.
    pub fn place(&self) -> &str {
        &self.place
    }

    pub(crate) fn options(&self) -> &PgConnectOptions {
        &self.options
    }
}

impl fmt::Debug for PostgresUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PostgresUrl({})", self.place)
    }
}

impl fmt::Display for PostgresUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_says_where_and_never_who() {
        for (url, place) in [
            (
                "postgres://karl:geh%2Feim@db.example:6432/instavm?sslmode=verify-full",
                "instavm at db.example:6432",
            ),
            (
                "postgresql://karl:geheim@[::1]:5433/instavm",
                "instavm at ::1:5433",
            ),
            (
                "postgres:///instavm?host=/run/postgresql&port=5444&user=karl&password=geheim",
                "instavm at /run/postgresql:5444",
            ),
            (
                "postgres://karl:geheim@%2Frun%2Fpostgresql:5445/instavm",
                "instavm at /run/postgresql:5445",
            ),
        ] {
            let parsed: PostgresUrl = url.parse().unwrap();
            assert_eq!(parsed.to_string(), place);
            let debug = format!("{parsed:?}");
            assert!(!debug.contains("karl") && !debug.contains("geh"), "{debug}");
            assert_eq!(parsed.options().get_username(), "karl");
        }
    }

    #[test]
    fn what_is_wrong_is_told_without_the_text() {
        for (url, fault) in [
            ("", UrlFault::Scheme),
            ("mysql://a:geheim@h/d", UrlFault::Scheme),
            ("postgres://a:geheim@h", UrlFault::NoDatabase),
            ("postgres://a:geheim@h/", UrlFault::NoDatabase),
            ("postgres://a:12/geheim@h/d", UrlFault::Form),
            ("postgres://a:12/geheim@h", UrlFault::Form),
            ("postgres://a:12?geheim@h/d", UrlFault::NoDatabase),
            ("postgres://a:ge#heim@h/d", UrlFault::Form),
            ("postgres://a:geheim@h:port/d", UrlFault::Form),
            ("postgres://a:geheim@h/d?sslmode=geheim", UrlFault::Tls),
            ("postgres://a@h/d?passwort=geheim", UrlFault::Parameter),
            ("postgres://a@h/d?port=geheim", UrlFault::Form),
        ] {
            let found = url.parse::<PostgresUrl>().unwrap_err();
            assert_eq!(found, fault, "{url}");
            assert!(!format!("{found} {found:?}").contains("geheim"));
        }
    }
}
