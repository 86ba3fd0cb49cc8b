//! Files of the session's VM.

use crate::call::{Answer, Call, Method};
use crate::client::Client;
use crate::download::Download;
use crate::error::{Error, Family, Result};
use crate::http::Activity;
use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use instavm_api::file::Uploaded;
use reqwest::Body;
use reqwest::multipart::{Form, Part};
use std::io;
use std::path::{Path, PathBuf};
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Bytes of a file that are read at once.
const CHUNK: usize = 64 << 10;
const UPLOAD: &str = "upload a file";
const DOWNLOAD: &str = "download a file";

/// Where an upload goes: a path in the VM, relative to `/app`. A text alone is the path of the file itself.
#[derive(Clone, Debug)]
#[must_use]
pub struct Target {
    path: String,
    unpack: bool,
}

impl Target {
    /// The file gets exactly this path; its parent directories are made.
    pub fn file(path: impl Into<String>) -> Target {
        Target {
            path: path.into(),
            unpack: false,
        }
    }

    /// A tar, tar.gz or zip file is unpacked into this directory.
    pub fn unpacked_into(path: impl Into<String>) -> Target {
        Target {
            path: path.into(),
            unpack: true,
        }
    }
}

impl<T: Into<String>> From<T> for Target {
    fn from(path: T) -> Target {
        Target::file(path)
    }
}

/// One attempt's worth of a body.
struct Source {
    body: Body,
    length: Option<u64>,
    name: String,
}

/// The file part touches the activity with each piece, so that a long upload is not taken for a silent one.
fn counted<S, E>(content: S, activity: Activity) -> Body
where
    S: Stream<Item = std::result::Result<Bytes, E>> + Send + 'static,
    E: Into<Box<dyn std::error::Error + Send + Sync>> + 'static,
{
    Body::wrap_stream(content.inspect(move |_| activity.touch()))
}

fn pieces(file: File) -> impl Stream<Item = io::Result<Bytes>> {
    stream::try_unfold(file, |mut file| async move {
        let mut piece = Vec::with_capacity(CHUNK);
        let read = file.read_buf(&mut piece).await?;
        Ok((read > 0).then(|| (Bytes::from(piece), file)))
    })
}

fn slices(content: Bytes) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
    stream::unfold(content, |mut rest| async move {
        let slice = rest.split_to(rest.len().min(CHUNK));
        (!slice.is_empty()).then_some((Ok(slice), rest))
    })
}

fn file_error(operation: &'static str, path: &Path) -> impl Fn(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::File {
        operation,
        path: Some(path.clone()),
        source,
    }
}

/// A call with a multipart body: text fields, then one file.
pub(crate) struct Parcel {
    pub(crate) call: Call,
    pub(crate) fields: Vec<(&'static str, String)>,
}

impl Parcel {
    /// Sends a local file, with retries. Its content is never in memory as a whole.
    pub(crate) async fn local(&self, client: &Client, local: &Path) -> Result<Answer> {
        let mut retries = client.http(self.call.operation)?.retries();
        loop {
            match self.local_once(client, local).await {
                Err(error) if retries.again(&error).await => {}
                result => return result,
            }
        }
    }

    async fn local_once(&self, client: &Client, local: &Path) -> Result<Answer> {
        let unreadable = file_error(self.call.operation, local);
        let file = File::open(local).await.map_err(&unreadable)?;
        let about = file.metadata().await.map_err(&unreadable)?;
        // A pipe or a device says nothing about how much is in it.
        let length = about.is_file().then_some(about.len());
        let name = local.to_string_lossy().into_owned();
        let source = |activity| Source {
            body: counted(pieces(file), activity),
            length,
            name,
        };
        self.send(client, source).await
    }

    /// Sends bytes, with retries.
    pub(crate) async fn bytes(&self, client: &Client, content: Bytes) -> Result<Answer> {
        let mut retries = client.http(self.call.operation)?.retries();
        loop {
            let rest = content.clone();
            let source = |activity| Source {
                body: counted(slices(rest), activity),
                length: Some(content.len() as u64),
                name: "content".to_owned(),
            };
            match self.send(client, source).await {
                Err(error) if retries.again(&error).await => {}
                result => return result,
            }
        }
    }

    /// Sends what a stream yields, once.
    pub(crate) async fn stream<S>(&self, client: &Client, content: S) -> Result<Answer>
    where
        S: Stream<Item = io::Result<Bytes>> + Send + 'static,
    {
        let source = |activity: Activity| Source {
            body: counted(content, activity),
            length: None,
            name: "content".to_owned(),
        };
        self.send(client, source).await
    }

    async fn send(
        &self,
        client: &Client,
        source: impl FnOnce(Activity) -> Source,
    ) -> Result<Answer> {
        let form = |activity| {
            let source = source(activity);
            let part = match source.length {
                Some(length) => Part::stream_with_length(source.body, length),
                None => Part::stream(source.body),
            };
            let fields = self.fields.iter().cloned();
            fields
                .fold(Form::new(), |form, (name, value)| form.text(name, value))
                .part("file", part.file_name(source.name))
        };
        let http = client.http(self.call.operation)?;
        http.send_form(&self.call, form).await
    }
}

impl Client {
    /// Sends any call of the API with these text fields and a local file, as `multipart/form-data`. The content is never
    /// in memory as a whole.
    ///
    /// # Errors
    /// When the file cannot be read, there is no answer, or the platform refuses.
    pub async fn call_with_file(
        &self,
        call: Call,
        fields: Vec<(&'static str, String)>,
        local: impl AsRef<Path>,
    ) -> Result<Answer> {
        Parcel { call, fields }.local(self, local.as_ref()).await
    }

    /// Sends a local file. Its content is never in memory as a whole.
    ///
    /// # Errors
    /// When the file cannot be read, without a session, and when the platform refuses.
    pub async fn upload_file(
        &self,
        local: impl AsRef<Path>,
        remote: impl Into<Target>,
    ) -> Result<Uploaded> {
        let parcel = self.upload(remote.into())?;
        parcel.local(self, local.as_ref()).await?.json()
    }

    /// Sends bytes.
    ///
    /// # Errors
    /// Without a session, and when the platform refuses.
    pub async fn upload_bytes(
        &self,
        content: impl Into<Bytes>,
        remote: impl Into<Target>,
    ) -> Result<Uploaded> {
        let parcel = self.upload(remote.into())?;
        parcel.bytes(self, content.into()).await?.json()
    }

    /// Sends what a stream yields, of any length. It is read once, so this call is never repeated.
    ///
    /// # Errors
    /// When the stream fails, without a session, and when the platform refuses.
    pub async fn upload_stream<S>(&self, content: S, remote: impl Into<Target>) -> Result<Uploaded>
    where
        S: Stream<Item = io::Result<Bytes>> + Send + 'static,
    {
        let parcel = self.upload(remote.into())?;
        parcel.stream(self, content).await?.json()
    }

    fn upload(&self, target: Target) -> Result<Parcel> {
        Ok(Parcel {
            call: Call::new(Method::Post, "/upload").named(UPLOAD, Family::Api),
            fields: vec![
                ("remote_path", target.path),
                ("session_id", self.current(UPLOAD)?),
                ("recursive", target.unpack.to_string()),
            ],
        })
    }

    /// Opens a file of the VM for reading piece by piece.
    ///
    /// # Errors
    /// Without a session, and when the platform refuses.
    pub async fn download_stream(&self, remote: &str) -> Result<Download> {
        let fields = vec![
            ("filename", remote.to_owned()),
            ("session_id", self.current(DOWNLOAD)?),
        ];
        let call = Call::new(Method::Post, "/download").named(DOWNLOAD, Family::Api);
        self.download(call.form(fields)).await
    }

    /// Opens the file that a call answers with.
    pub(crate) async fn download(&self, call: Call) -> Result<Download> {
        let http = self.http(call.operation)?;
        let response = http.open(&call).await?;
        Ok(Download::new(
            response,
            call.operation,
            http.patience(&call),
        ))
    }

    /// A file of the VM, in memory.
    ///
    /// # Errors
    /// Without a session, and when the platform refuses.
    pub async fn download_bytes(&self, remote: &str) -> Result<Vec<u8>> {
        self.download_stream(remote).await?.bytes().await
    }

    /// Writes a file of the VM to a local path and returns its size. A regular file that is there is replaced when the
    /// whole new content has come, and stays as it is when something goes wrong.
    ///
    /// # Errors
    /// When the local file cannot be written, without a session, and when the platform refuses.
    pub async fn download_file(&self, remote: &str, local: impl AsRef<Path>) -> Result<u64> {
        self.download_stream(remote).await?.save(local).await
    }
}

/// Writes what is downloaded to a local path.
pub(crate) async fn save(
    content: &mut Download,
    operation: &'static str,
    local: &Path,
) -> Result<u64> {
    let unwritable = file_error(operation, local);
    // What is no regular file, a pipe for instance, is written to as it is.
    if tokio::fs::metadata(local)
        .await
        .is_ok_and(|about| !about.is_file())
    {
        let mut file = tokio::fs::OpenOptions::new();
        let mut file = file.write(true).open(local).await.map_err(&unwritable)?;
        return copy(content, &mut file, &unwritable).await;
    }
    let partial = Partial::beside(local);
    let mut file = File::create_new(&partial.0).await.map_err(&unwritable)?;
    let size = copy(content, &mut file, &unwritable).await?;
    drop(file);
    tokio::fs::rename(&partial.0, local)
        .await
        .map_err(&unwritable)?;
    Ok(size)
}

async fn copy(
    content: &mut Download,
    file: &mut File,
    unwritable: &impl Fn(io::Error) -> Error,
) -> Result<u64> {
    let mut size = 0;
    while let Some(piece) = content.chunk().await? {
        file.write_all(&piece).await.map_err(unwritable)?;
        size += piece.len() as u64;
    }
    file.flush().await.map_err(unwritable)?;
    Ok(size)
}

/// A file that is not yet whole. What is left of it goes away.
struct Partial(PathBuf);

impl Partial {
    fn beside(local: &Path) -> Partial {
        use std::hash::{BuildHasher, RandomState};
        let name = local.file_name().unwrap_or_default().to_string_lossy();
        let chance = RandomState::new().hash_one(std::process::id());
        Partial(local.with_file_name(format!(".{name}.{chance:016x}")))
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        // After the rename there is none.
        let _ = std::fs::remove_file(&self.0);
    }
}
