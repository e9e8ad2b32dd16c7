//! `rpc.discover`.

use super::{About, Methods};
use crate::rpc::discover;
use crate::rpc::params::None;

pub(super) fn add(methods: &mut Methods) {
    methods.add(
        About::own(
            "rpc.discover",
            "The OpenRPC document: every method, its parameters, result and errors.",
            ("{}", r#"{"openrpc":"1.3.2"}"#),
        ),
        |call, _: None| async move { Ok(discover::document(call.calls.methods())) },
    );
}
