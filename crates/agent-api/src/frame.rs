//! Frames: a little-endian `u32` length, then that many bytes of postcard.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// The longest payload that either side accepts, in bytes: room for a command of the largest size that the API takes.
/// A peer that announces more is broken or hostile and is cut off.
pub const MAX_PAYLOAD: usize = 64 * 1024 * 1024;

/// The content that one [`crate::Event::Data`] or [`crate::Control::Data`] carries at most, in bytes: large enough to
/// keep the number of system calls small, small enough to keep memory flat.
pub const CHUNK: usize = 256 * 1024;

/// Why bytes are no frame.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The announced length is over [`MAX_PAYLOAD`].
    #[error("a frame of {0} bytes was announced, {MAX_PAYLOAD} is the limit")]
    TooLong(usize),
    /// The payload is not a message of the expected type.
    #[error("the frame is no message of this protocol")]
    Malformed(#[source] postcard::Error),
}

/// Encodes one message as a whole frame.
///
/// # Errors
/// [`FrameError::TooLong`] for a payload over [`MAX_PAYLOAD`].
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, FrameError> {
    let mut out = postcard::serialize_with_flavor(message, Growing(vec![0u8; 4]))
        .map_err(FrameError::Malformed)?;
    let length = out.len() - 4;
    match u32::try_from(length) {
        Ok(prefix) if length <= MAX_PAYLOAD => {
            out[..4].copy_from_slice(&prefix.to_le_bytes());
            Ok(out)
        }
        _ => Err(FrameError::TooLong(length)),
    }
}

/// Takes content in whole slices; what postcard has for growing buffers would visit every byte.
struct Growing(Vec<u8>);

impl postcard::ser_flavors::Flavor for Growing {
    type Output = Vec<u8>;

    fn try_push(&mut self, byte: u8) -> postcard::Result<()> {
        self.0.push(byte);
        Ok(())
    }

    fn try_extend(&mut self, bytes: &[u8]) -> postcard::Result<()> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }

    fn finalize(self) -> postcard::Result<Vec<u8>> {
        Ok(self.0)
    }
}

/// Decodes the payload of a frame (without its length).
///
/// # Errors
/// [`FrameError::Malformed`] when it is no `T`.
pub fn decode<T: DeserializeOwned>(payload: &[u8]) -> Result<T, FrameError> {
    postcard::from_bytes(payload).map_err(FrameError::Malformed)
}

/// The length that a frame's first four bytes announce.
///
/// # Errors
/// [`FrameError::TooLong`] for one over [`MAX_PAYLOAD`].
pub fn payload_length(prefix: [u8; 4]) -> Result<usize, FrameError> {
    let length = u32::from_le_bytes(prefix) as usize;
    if length > MAX_PAYLOAD {
        return Err(FrameError::TooLong(length));
    }
    Ok(length)
}

/// Collects bytes as they arrive and gives out whole frames.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
    start: usize,
}

impl Decoder {
    /// Adds bytes that arrived.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.start > 0 && self.start == self.buffer.len() {
            self.buffer.clear();
            self.start = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole message, or `None` until more bytes arrive.
    ///
    /// # Errors
    /// [`FrameError`] when the stream cannot be continued.
    pub fn pop<T: DeserializeOwned>(&mut self) -> Result<Option<T>, FrameError> {
        let pending = &self.buffer[self.start..];
        let Some(prefix) = pending.first_chunk::<4>() else {
            return Ok(None);
        };
        let length = payload_length(*prefix)?;
        let Some(payload) = pending.get(4..4 + length) else {
            return Ok(None);
        };
        let message = decode(payload)?;
        self.start += 4 + length;
        if self.start > CHUNK {
            self.buffer.drain(..self.start);
            self.start = 0;
        }
        Ok(Some(message))
    }
}

/// Serialises a `Vec<u8>` as one byte string; serde's default would visit every byte.
pub(crate) mod bytes {
    use serde::de::{Deserializer, Error, Visitor};
    use serde::ser::Serializer;

    pub(crate) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(bytes)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<u8>, D::Error> {
        struct Bytes;
        impl Visitor<'_> for Bytes {
            type Value = Vec<u8>;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a byte string")
            }
            fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Vec<u8>, E> {
                Ok(bytes.to_vec())
            }
            fn visit_byte_buf<E: Error>(self, bytes: Vec<u8>) -> Result<Vec<u8>, E> {
                Ok(bytes)
            }
        }
        deserializer.deserialize_bytes(Bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Control, Event};

    #[test]
    fn frames_come_out_whole_however_they_arrive() {
        let events = [
            Event::Stdout(b"abc".to_vec()),
            Event::Done,
            Event::Data(vec![7; CHUNK]),
        ];
        let stream: Vec<u8> = events
            .iter()
            .flat_map(|event| encode(event).unwrap())
            .collect();
        for step in [1, 3, 1000, stream.len()] {
            let mut decoder = Decoder::default();
            let mut got = Vec::new();
            for part in stream.chunks(step) {
                decoder.push(part);
                while let Some(event) = decoder.pop::<Event>().unwrap() {
                    got.push(event);
                }
            }
            assert_eq!(got, events, "in steps of {step}");
        }
    }

    #[test]
    fn a_length_over_the_limit_ends_the_stream() {
        let mut decoder = Decoder::default();
        decoder.push(&u32::MAX.to_le_bytes());
        assert!(matches!(
            decoder.pop::<Event>(),
            Err(FrameError::TooLong(_))
        ));
    }

    proptest::proptest! {
        #[test]
        fn bytes_of_a_hostile_peer_never_panic(bytes: Vec<u8>) {
            let mut decoder = Decoder::default();
            decoder.push(&bytes);
            while let Ok(Some(_)) = decoder.pop::<Event>() {}
            let _ = decode::<Control>(&bytes);
            let _ = decode::<crate::Request>(&bytes);
            let _ = decode::<crate::launch::Progress>(&bytes);
        }
    }
}
