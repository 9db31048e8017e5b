//! The server that clients see: all tools in one list, each server's behind its name, and calls passed on to where the tool is.

use std::{collections::HashSet, sync::Arc, time::Duration};

use rmcp::{
    ErrorData, RoleServer, ServerHandler,
    model::{
        CallToolRequestParams, CallToolResponse, Implementation, ListToolsResult, PaginatedRequestParams, ResultType,
        ServerCapabilities, ServerConfig, Tool,
    },
    service::{RequestContext, ServiceError},
};

use crate::{limits::CALL_DEADLINE, sandbox, upstream::Upstream};

/// Between a server's prefix and the name of its tool.
const SEPARATOR: char = '_';

/// Two tools that clients could not tell apart, as `b_c` of a server `a` and `c` of a server `a_b`.
#[derive(Debug, thiserror::Error)]
#[error("cannot offer two tools as `{0}`: rename one of the MCP servers")]
pub(crate) struct SameName(String);

/// All tools of one sandbox. Clones share the servers.
#[derive(Debug, Clone)]
pub(crate) struct Gateway {
    upstreams: Arc<Vec<Upstream>>,
}

impl Gateway {
    /// Offers the tools of these servers, and those of the sandbox.
    pub(crate) fn new(upstreams: Vec<Upstream>) -> Result<Self, SameName> {
        let gateway = Self { upstreams: Arc::new(upstreams) };
        let mut names = HashSet::new();
        match gateway.tools().into_iter().find(|tool| !names.insert(tool.name.clone())) {
            Some(tool) => Err(SameName(tool.name.into_owned())),
            None => Ok(gateway),
        }
    }

    fn tools(&self) -> Vec<Tool> {
        let mut tools = sandbox::tools();
        for upstream in self.upstreams.iter() {
            for tool in &upstream.tools {
                let mut tool = tool.clone();
                tool.name = format!("{}{SEPARATOR}{}", upstream.prefix, tool.name).into();
                tools.push(tool);
            }
        }
        tools
    }

    /// The server that has this tool, and how it calls it itself.
    fn find(&self, name: &str) -> Option<(&Upstream, String)> {
        self.upstreams.iter().find_map(|upstream| {
            let own = name.strip_prefix(&upstream.prefix)?.strip_prefix(SEPARATOR)?;
            upstream.tools.iter().any(|tool| tool.name == own).then(|| (upstream, own.to_owned()))
        })
    }
}

impl ServerHandler for Gateway {
    fn get_info(&self) -> ServerConfig {
        ServerConfig::new(ServerCapabilities::builder().enable_tools().build())
            .with_server_info(Implementation::new("mcp-gateway", env!("CARGO_PKG_VERSION")))
            .with_instructions("Tools of this sandbox begin with `sandbox_`, those of each server behind it with its name.")
    }

    async fn list_tools(
        &self,
        _page: Option<PaginatedRequestParams>,
        _context: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        Ok(ListToolsResult::with_all_items(self.tools()))
    }

    async fn call_tool(
        &self,
        mut request: CallToolRequestParams,
        _context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        if let Some(answer) = sandbox::call(&request.name, request.arguments.as_ref()).await {
            return answer.map(CallToolResponse::Complete);
        }
        let Some((upstream, own)) = self.find(&request.name) else {
            return Err(ErrorData::invalid_params(format!("there is no tool `{}`", request.name), None));
        };
        request.name = own.into();
        // It is about this client and the gateway; between gateway and server there is another session.
        request.meta = None;
        match tokio::time::timeout(CALL_DEADLINE, upstream.peer.call_tool_once(request)).await {
            Ok(answer) => answer.map(complete).map_err(|error| passed_on(&upstream.name, error)),
            Err(_) => Err(late(&upstream.name, CALL_DEADLINE)),
        }
    }
}

/// A server's result in the newest form, which names its kind. For clients of older forms the library takes that away again.
fn complete(answer: CallToolResponse) -> CallToolResponse {
    match answer {
        CallToolResponse::Complete(mut result) => {
            result.result_type.get_or_insert(ResultType::COMPLETE);
            CallToolResponse::Complete(result)
        }
        other => other,
    }
}

/// A server's own error as it is, and everything else as what happened to it.
fn passed_on(server: &str, error: ServiceError) -> ErrorData {
    match error {
        ServiceError::McpError(error) => error,
        ServiceError::TransportClosed | ServiceError::TransportSend(_) => {
            ErrorData::internal_error(format!("MCP server `{server}` has ended"), None)
        }
        other => ErrorData::internal_error(format!("MCP server `{server}` did not answer: {other}"), None),
    }
}

fn late(server: &str, deadline: Duration) -> ErrorData {
    ErrorData::internal_error(format!("MCP server `{server}` did not answer within {} s", deadline.as_secs()), None)
}
