//! What may be asked of a build: everything that ends on a command line is of a known form.

use crate::bounds;
use crate::error::Problem;
use crate::{Platform, Settings};
use instavm_api::snapshot::{BuildArgs, BuildSnapshot};
use instavm_node_api::{SnapshotBuild, SnapshotId};

/// The longest reference of an image.
const IMAGE_LIMIT: usize = 512;
/// The longest list of packages.
const PACKAGES_LIMIT: usize = 500;
/// The longest name of a package with what follows it.
const PACKAGE_LIMIT: usize = 256;
/// The longest address of a repository.
const URL_LIMIT: usize = 2_048;
/// The longest name of a branch.
const BRANCH_LIMIT: usize = 255;
/// The longest command.
const COMMAND_LIMIT: usize = 64 << 10;

/// The checked request of a build.
pub(super) fn checked(
    platform: &Platform,
    id: SnapshotId,
    request: BuildSnapshot,
) -> Result<SnapshotBuild, Problem> {
    let settings: &Settings = &platform.settings;
    let oci_image = request.oci_image.trim().to_owned();
    check_image(&oci_image)?;
    let arguments = request.build_args.unwrap_or_default();
    let memory_mb = bounds::number(
        "memory_mb",
        request.memory_mb,
        settings.build_memory_default_mb,
        &settings.memory_range_mb,
    )?;
    let vcpu_count = bounds::number(
        "vcpu_count",
        request.vcpu_count,
        settings.vcpu_default,
        &settings.vcpu_range,
    )?;
    let disk_bytes = disk(settings, arguments.disk_size_gb)?;
    let (git_clone_url, git_clone_branch) = repository(&arguments)?;
    Ok(SnapshotBuild {
        id,
        oci_image,
        memory_mb,
        vcpu_count,
        disk_bytes,
        apt_packages: packages("extra_apt_packages", arguments.extra_apt_packages, is_apt)?,
        pip_packages: packages("extra_pip_packages", arguments.extra_pip_packages, is_pip)?,
        npm_packages: packages("extra_npm_packages", arguments.extra_npm_packages, is_npm)?,
        git_clone_url,
        git_clone_branch,
        post_build_command: command(arguments.post_build_cmd)?,
        env: bounds::environment_of("build_args.envs", arguments.envs.unwrap_or_default())?,
    })
}

fn disk(settings: &Settings, given: Option<i64>) -> Result<u64, Problem> {
    let most = u32::try_from(settings.disk_bytes >> 30).unwrap_or(u32::MAX);
    match given {
        None => Ok(settings.disk_bytes),
        Some(_) => {
            let gib = bounds::number("build_args.disk_size_gb", given, 1, &(1..=most.max(1)))?;
            Ok((u64::from(gib) << 30).min(settings.disk_bytes))
        }
    }
}

fn command(given: Option<String>) -> Result<Option<String>, Problem> {
    let Some(command) = given.filter(|command| !command.trim().is_empty()) else {
        return Ok(None);
    };
    if command.len() > COMMAND_LIMIT || command.contains('\0') {
        return Err(Problem::invalid(
            "build_args.post_build_cmd",
            format!("must not have more than {COMMAND_LIMIT} bytes, nor NUL"),
        ));
    }
    Ok(Some(command))
}

fn repository(arguments: &BuildArgs) -> Result<(Option<String>, Option<String>), Problem> {
    let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    let (url, branch) = (
        given(&arguments.git_clone_url),
        given(&arguments.git_clone_branch),
    );
    if let Some(url) = &url
        && !is_repository(url)
    {
        return Err(Problem::invalid(
            "build_args.git_clone_url",
            "must be an address that begins with https://, http:// or ssh://, such as https://example.com/team/app.git",
        ));
    }
    if let Some(branch) = &branch {
        if url.is_none() {
            return Err(Problem::invalid(
                "build_args.git_clone_branch",
                "needs git_clone_url beside it",
            ));
        }
        if !is_branch(branch) {
            return Err(Problem::invalid(
                "build_args.git_clone_branch",
                "is no name that git lets a branch or tag have",
            ));
        }
    }
    Ok((url, branch))
}

fn packages(
    field: &str,
    given: Option<String>,
    fits: fn(&str) -> bool,
) -> Result<Vec<String>, Problem> {
    let given = given.unwrap_or_default();
    let packages: Vec<String> = given.split_whitespace().map(str::to_owned).collect();
    let field = format!("build_args.{field}");
    if packages.len() > PACKAGES_LIMIT {
        return Err(Problem::invalid(
            &field,
            format!(
                "has {} packages and the limit is {PACKAGES_LIMIT}",
                packages.len()
            ),
        ));
    }
    let wrong = |name: &&String| name.len() > PACKAGE_LIMIT || !fits(name);
    match packages.iter().find(wrong) {
        None => Ok(packages),
        Some(name) => {
            let shown: String = name.chars().take(64).collect();
            Err(Problem::invalid(
                &field,
                format!("{shown:?} is no name of a package; give names, separated by spaces"),
            ))
        }
    }
}

fn is_word(text: &str, more: &str) -> bool {
    !text.is_empty()
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || more.contains(c))
}

fn begins_well(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric())
}

/// `name`, `name:architecture`, `name=version`, `name/release`.
fn is_apt(text: &str) -> bool {
    let (name, rest) = text
        .find(['=', '/'])
        .map_or((text, None), |at| (&text[..at], Some(&text[at + 1..])));
    let (name, architecture) = name
        .split_once(':')
        .map_or((name, None), |(name, rest)| (name, Some(rest)));
    begins_well(name)
        && is_word(name, "+.-")
        && architecture.is_none_or(|text| is_word(text, "-"))
        && rest.is_none_or(|text| begins_well(text) && is_word(text, "+.-:~"))
}

/// `name`, `name[extra,…]`, with versions as `==1.2`, `>=1,<2` behind.
fn is_pip(text: &str) -> bool {
    let end = text.find(['=', '<', '>', '!', '~']).unwrap_or(text.len());
    let (name, versions) = text.split_at(end);
    let (name, extras) = match name.split_once('[') {
        None => (name, None),
        Some((name, rest)) => match rest.strip_suffix(']') {
            Some(extras) => (name, Some(extras)),
            None => return false,
        },
    };
    let is_version = |part: &str| {
        ["===", "==", "~=", "!=", "<=", ">=", "<", ">"]
            .iter()
            .find_map(|operator| part.strip_prefix(operator))
            .is_some_and(|version| is_word(version, ".*+!-_"))
    };
    begins_well(name)
        && is_word(name, "._-")
        && extras.is_none_or(|extras| extras.split(',').all(|extra| is_word(extra, "._-")))
        && (versions.is_empty() || versions.split(',').all(is_version))
}

/// `name`, `@scope/name`, with `@version` or `@tag` behind.
fn is_npm(text: &str) -> bool {
    let (scope, rest) = match text.strip_prefix('@') {
        None => (None, text),
        Some(rest) => match rest.split_once('/') {
            Some((scope, rest)) => (Some(scope), rest),
            None => return false,
        },
    };
    let (name, version) = rest
        .split_once('@')
        .map_or((rest, None), |(name, version)| (name, Some(version)));
    scope.is_none_or(|scope| begins_well(scope) && is_word(scope, "._-"))
        && begins_well(name)
        && is_word(name, "._-")
        && version.is_none_or(|version| {
            version.starts_with(|c: char| c.is_ascii_alphanumeric() || "^~<>=*".contains(c))
                && is_word(version, ".^~<>=*+-")
        })
}

/// An address with a scheme that cannot be taken for an option or a command.
fn is_repository(text: &str) -> bool {
    let rest = ["https://", "http://", "ssh://"]
        .iter()
        .find_map(|scheme| text.strip_prefix(scheme));
    let Some(rest) = rest else { return false };
    let visible = text.len() <= URL_LIMIT && text.bytes().all(|byte| byte.is_ascii_graphic());
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let (user, host) = authority
        .rsplit_once('@')
        .map_or((None, authority), |(user, host)| (Some(user), host));
    visible
        && !path.is_empty()
        && user.is_none_or(|user| !user.is_empty() && !user.starts_with('-'))
        && (begins_well(host) || host.starts_with('['))
        && is_word(host, ".-_:[]")
        && !text.contains(['"', '\'', '`', '\\', '<', '>', '|', '^'])
}

/// What `git check-ref-format` takes, and no option.
fn is_branch(text: &str) -> bool {
    text.len() <= BRANCH_LIMIT
        && !text.starts_with(['-', '/', '.'])
        && !text.ends_with(['/', '.'])
        && !["..", "//", "@{", "/."]
            .iter()
            .any(|wrong| text.contains(wrong))
        && text.split('/').all(|part| !part.ends_with(".lock"))
        && text != "@"
        && !text.contains(|c: char| c.is_control() || " ~^:?*[\\".contains(c))
}

/// A reference as registries know it: `host:port/path:tag@digest`, of which only the path must be there.
fn check_image(text: &str) -> Result<(), Problem> {
    if text.is_empty() {
        return Err(Problem::invalid("oci_image", "is missing"));
    }
    if text.len() <= IMAGE_LIMIT && is_image(text) {
        return Ok(());
    }
    Err(Problem::invalid(
        "oci_image",
        "is no reference of an image, such as debian:12 or registry.example.com:5000/team/app:1.0",
    ))
}

fn is_image(text: &str) -> bool {
    let (text, digest) = text
        .split_once('@')
        .map_or((text, None), |(text, digest)| (text, Some(digest)));
    let is_digest = |digest: &str| {
        digest.split_once(':').is_some_and(|(kind, hex)| {
            is_word(kind, "+._-") && hex.len() >= 32 && hex.bytes().all(|b| b.is_ascii_hexdigit())
        })
    };
    let last = text.rfind('/').map_or(0, |at| at + 1);
    let (path, tag) = match text[last..].find(':') {
        None => (text, None),
        Some(at) => (&text[..last + at], Some(&text[last + at + 1..])),
    };
    let is_tag =
        |tag: &str| tag.len() <= 128 && !tag.starts_with(['.', '-']) && is_word(tag, "._-");
    let mut parts = path.split('/');
    let first = parts.next().unwrap_or_default();
    let has_host = path.contains('/') && (first.contains(['.', ':']) || first == "localhost");
    let is_host = begins_well(first) && is_word(first, ".-:");
    let is_part = |part: &str| {
        begins_well(part)
            && part.ends_with(|c: char| c.is_ascii_alphanumeric())
            && part
                .chars()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-".contains(c))
    };
    (if has_host { is_host } else { is_part(first) })
        && parts.all(is_part)
        && tag.is_none_or(is_tag)
        && digest.is_none_or(is_digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(fits: fn(&str) -> bool, good: &[&str], bad: &[&str]) {
        for text in good {
            assert!(fits(text), "{text}");
        }
        for text in bad {
            assert!(!fits(text), "{text:?}");
        }
    }

    #[test]
    fn packages_are_names_and_no_options() {
        all(
            is_apt,
            &[
                "git",
                "libstdc++6",
                "libc6:amd64",
                "curl=7.88.1-10+deb12u5",
                "nginx/bookworm",
            ],
            &[
                "-o",
                "--allow",
                "",
                "a;b",
                "a b",
                "./x.deb",
                "x=",
                "http://x/y.deb",
                "$(x)",
                "a=-o",
            ],
        );
        all(
            is_pip,
            &[
                "numpy",
                "pandas==2.2.1",
                "uvicorn[standard]>=0.30,<1",
                "ruamel.yaml~=0.18",
                "a===1",
            ],
            &[
                "-r",
                "--index-url=x",
                "",
                "git+https://x/y",
                "a;b",
                "a[b",
                "a==",
                "../x",
                "a@http://x",
            ],
        );
        all(
            is_npm,
            &[
                "typescript",
                "@types/node@20",
                "left-pad@^1.3.0",
                "x@latest",
                "y@>=1.0.0",
            ],
            &[
                "-g",
                "--prefix=x",
                "",
                "@scope",
                "@/x",
                "git+ssh://x",
                "../x",
                "x@-1",
                "a b",
                "@-s/x",
            ],
        );
    }

    #[test]
    fn repositories_and_branches_cannot_be_options() {
        all(
            is_repository,
            &[
                "https://example.com/a/b.git",
                "http://user:token@example.com:8080/a",
                "ssh://git@example.com:22/a/b",
                "https://[::1]:3000/a",
            ],
            &[
                "",
                "--upload-pack=x",
                "ext::sh -c x",
                "file:///etc",
                "git@example.com:a/b",
                "https://",
                "https://example.com",
                "https://-oProxy/x",
                "ssh://-oProxyCommand=x/y",
                "ssh://-u@example.com/x",
                "https://example.com/a b",
                "https://example.com/a\n",
            ],
        );
        all(
            is_branch,
            &["main", "feature/x-1", "v1.2.3", "dependabot/npm_and_yarn/a"],
            &[
                "-b", "a..b", "a b", "/a", "a/", "a.lock", "a\\b", "@", "a~1", ".a", "a/.b",
                "x@{1}",
            ],
        );
    }

    #[test]
    fn images_are_references() {
        let digest = format!("debian@sha256:{}", "ab".repeat(32));
        all(
            is_image,
            &[
                "debian",
                "debian:12",
                "library/debian:bookworm-slim",
                "docker.io/library/ubuntu:24.04",
                "localhost:5000/team/app",
                "registry.example.com:5000/a/b_c/d.e:1.0_x",
                &digest,
            ],
            &[
                "",
                "-debian",
                "Debian",
                "debian:",
                "debian:-x",
                "a//b",
                "/a",
                "a/",
                "http://x/y",
                "debian 12",
                "debian@sha256:xyz",
                "../x",
            ],
        );
    }
}
