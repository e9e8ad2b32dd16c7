//! The body of a POST: bounded, counted, and exactly one message.

use bytes::BytesMut;
use http_body_util::BodyExt;
use hyper::StatusCode;
use hyper::body::{Body, Incoming};
use jsonrpsee::types::ErrorObjectOwned;

use super::super::connection::UNCOUNTED;
use super::super::context::{Context, Dispatch};
use super::super::frames::{Frame, Frames, Rest};
use super::super::refusal;
use super::{Instead, closing, within};

/// Reads the whole body, or says what to answer instead.
pub(super) async fn collect<D: Dispatch>(
    context: &Context<D>,
    mut body: Incoming,
) -> Result<BytesMut, Instead> {
    let bounds = &context.bounds;
    let too_large =
        || closing(StatusCode::PAYLOAD_TOO_LARGE, &refusal::too_large("the message", bounds.message));
    let announced = body.size_hint().lower();
    if usize::try_from(announced).map_or(true, |announced| announced > bounds.message) {
        return Err(too_large());
    }
    let mut bytes = BytesMut::new();
    let mut room = context.budget.room();
    loop {
        let frame = match within(bounds.read_timeout, body.frame()).await {
            Ok(None) => return Ok(bytes),
            Ok(Some(Ok(frame))) => frame,
            Ok(Some(Err(_))) => {
                return Err(closing(StatusCode::BAD_REQUEST, &refusal::parse_error("the body is cut off")));
            }
            Err(_) => {
                let limit = humantime::format_duration(bounds.read_timeout);
                let why = format!("message not finished within {limit}");
                return Err(closing(StatusCode::REQUEST_TIMEOUT, &refusal::parse_error(why)));
            }
        };
        let Ok(data) = frame.into_data() else { continue };
        if bytes.len() + data.len() > bounds.message {
            return Err(too_large());
        }
        bytes.extend_from_slice(&data);
        let counted = bytes.len().saturating_sub(UNCOUNTED);
        if !room.resize(counted) {
            let Ok(more) = within(bounds.room_wait(), room.grown(counted)).await else {
                let error = refusal::overloaded("no memory for messages", std::time::Duration::from_secs(1));
                return Err(closing(StatusCode::SERVICE_UNAVAILABLE, &error));
            };
            room.merge(more);
        }
    }
}

/// Holds the body to the same grammar and depth as a message on a plain connection.
pub(super) fn one_message(body: &[u8]) -> Result<(), ErrorObjectOwned> {
    let mut frames = Frames::new(body.len());
    let rest = match frames.next(body) {
        Frame::Message(range) => body.get(range.end..).unwrap_or_default(),
        Frame::More { .. } => match frames.end() {
            Rest::Message => &[],
            Rest::Nothing => return Err(refusal::parse_error("the body is empty")),
            Rest::Unfinished => return Err(refusal::parse_error("the input ends inside a message")),
        },
        Frame::Broken { offset, fault, .. } => {
            return Err(refusal::parse_error(format_args!("{fault} at byte {offset}")));
        }
        Frame::TooLong => return Err(refusal::too_large("the message", body.len())),
    };
    if rest.trim_ascii().is_empty() {
        Ok(())
    } else {
        Err(refusal::parse_error("a body holds one message; several are a batch"))
    }
}

#[cfg(test)]
mod tests {
    use super::one_message;

    #[test]
    fn a_body_is_one_message() {
        for good in ["{}", " [1]\n", "5", "\n{\n}\n"] {
            assert!(one_message(good.as_bytes()).is_ok(), "{good}");
        }
        let deep = "[".repeat(200);
        for bad in ["", " ", "{", "{}{}", "{},", "nul", "{]", &deep] {
            assert!(one_message(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
