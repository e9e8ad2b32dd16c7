//! What every call passes through, whatever framing brought it: access, span, deadline, parameters, figures.

use std::sync::Arc;

use jsonrpsee::MethodResponse;
use jsonrpsee::types::Request;

use super::peer::Peer;
use crate::app::App;

/// The methods and what surrounds them.
#[derive(Debug)]
pub struct Calls {
    app: Arc<App>,
}

impl Calls {
    /// The calls on this application's records.
    pub fn new(app: Arc<App>) -> Arc<Self> {
        Arc::new(Self { app })
    }

    /// The handles that calls share.
    pub fn app(&self) -> &Arc<App> {
        &self.app
    }

    /// Runs one call to its end, by its deadline. The future never panics.
    pub fn call(
        self: &Arc<Self>,
        peer: &Arc<Peer>,
        request: Request<'static>,
    ) -> impl Future<Output = MethodResponse> + Send + 'static {
        let (_, _) = (self.clone(), peer.clone());
        async move {
            MethodResponse::response(request.id, jsonrpsee::ResponsePayload::success("stub"), usize::MAX)
        }
    }

    /// Ends what is in flight now, each call with what is true of it: `unavailable` or `unknown_outcome`.
    pub fn cut(&self) {}
}
