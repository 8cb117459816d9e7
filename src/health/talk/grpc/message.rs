//! The messages of `grpc.health.v1`, and how gRPC frames them.
#![forbid(unsafe_code)]

use crate::model::Reason;
use bytes::Bytes;
use prost::Message;

/// The longest answer that is read, in bytes; a service's own has two.
const MESSAGE_MAX: usize = 4096;

/// A flag and the length (gRPC over HTTP/2, `Length-Prefixed-Message`).
const PREFIX: usize = 5;

/// `HealthCheckRequest`.
#[derive(Clone, PartialEq, Message)]
struct Request {
    /// The empty name asks for the server as a whole.
    #[prost(string, tag = "1")]
    service: String,
}

/// `HealthCheckResponse`.
#[derive(Clone, PartialEq, Message)]
struct Response {
    /// `ServingStatus`.
    #[prost(int32, tag = "1")]
    status: i32,
}

/// The framed request for the server as a whole.
pub(super) fn request() -> Bytes {
    let message = Request::default().encode_to_vec();
    let mut framed = vec![0];
    framed.extend((message.len() as u32).to_be_bytes());
    framed.extend(message);
    framed.into()
}

/// The one framed message of an answer, as far as it has come.
#[derive(Debug, Default)]
pub(super) struct Answer(Vec<u8>);

impl Answer {
    /// Takes more of it. One that is compressed, or followed by anything, is none of this protocol.
    pub fn take(&mut self, bytes: &[u8]) -> Result<(), Reason> {
        self.0.extend_from_slice(bytes);
        match self.0.split_first_chunk::<PREFIX>() {
            Some((&[1..=255, ..], _)) => Err(Reason::NotGrpc),
            Some((prefix, _)) if length(*prefix) > MESSAGE_MAX => Err(Reason::TooLong),
            Some((prefix, message)) if message.len() > length(*prefix) => Err(Reason::NotGrpc),
            _ => Ok(()),
        }
    }

    /// All has come: whether the server is well by it.
    pub fn verdict(&self) -> Result<(), Reason> {
        let message = match self.0.split_first_chunk::<PREFIX>() {
            Some((prefix, message)) if message.len() == length(*prefix) => message,
            _ => return Err(Reason::NotGrpc),
        };
        match Response::decode(message).map(|response| u8::try_from(response.status)) {
            Ok(Ok(1)) => Ok(()),
            Ok(Ok(status)) => Err(Reason::NotServing(status)),
            _ => Err(Reason::NotGrpc),
        }
    }
}

fn length([_, length @ ..]: [u8; PREFIX]) -> usize {
    u32::from_be_bytes(length) as usize
}
