//! Answers to requests about twins, which this hub does not keep.

use fieldpost_hub::Hub;
use serde::Serialize;

/// Status and error code: not implemented.
const STATUS: u32 = 501;
const ERROR_CODE: u32 = 501_000;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ErrorObject {
    error_code: u32,
    tracking_id: String,
    message: &'static str,
    timestamp_utc: String,
}

/// Topic and payload of the answer to a request.
///
/// Without an answer SDKs wait for a minute and more; and Node knows a failure only by the
/// `errorCode` in the body.
pub(super) fn not_supported(hub: &Hub, request_id: &str) -> (String, Vec<u8>) {
    let mut id = [0; 16];
    hub.chance().fill(&mut id);
    let object = ErrorObject {
        error_code: ERROR_CODE,
        tracking_id: format!("{:032x}", u128::from_be_bytes(id)),
        message: "Device twins are not supported by this hub",
        timestamp_utc: hub.timer().now().to_string(),
    };
    let body = serde_json::to_vec(&object).unwrap_or_default();
    (
        format!("$iothub/twin/res/{STATUS}/?$rid={request_id}"),
        body,
    )
}
