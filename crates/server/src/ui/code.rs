//! Code in a page: a cell is run by the sandbox's code interpreter, and what came of it is kept for a while, so that a page is whole when it
//! is loaded again.
//!
//! All that an interpreter says is a stranger's: texts stay texts, pictures are shown only where their first bytes are a picture's, and
//! markup that it offers is passed over for the text that comes with it.

use std::{sync::Arc, time::Duration};

use axum::{
    body::Body,
    extract::{Path, State},
    response::{IntoResponse, Redirect, Response},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use firkin_dashboard::{
    code::{self as pages, Cell, LANGUAGES, Output},
    frame::Section,
};
use firkin_runtime::sandbox::{RuntimeSandbox, SandboxId, SandboxState};
use firkin_wire::headers::ACCESS_TOKEN;
use http::{Request, header};
use http_body_util::BodyExt as _;
use serde::Deserialize;

use super::{
    Visitor, answer,
    files::{CONFINED, image_type},
    form::Form,
    notebooks::MAX_RUNNING,
    place,
    sandbox::head,
};
use crate::{App, error::ApiError, extract::Sandbox, proxy, target::Target};

/// The interpreter's port.
const PORT: u16 = 49999;

/// A cell may run so long.
const PATIENCE: Duration = Duration::from_secs(60);

/// Bytes of an interpreter's answer that are read: a picture or two.
const MAX_ANSWER_BYTES: usize = 8 << 20;

/// Bytes of texts of one cell that are kept.
const MAX_TEXT_BYTES: usize = 256 << 10;

/// Outputs of one cell that are kept: each is some elements of the page.
const MAX_OUTPUTS: usize = 200;

/// An event of the interpreter, as far as it is shown.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Event {
    r#type: String,
    text: Option<String>,
    png: Option<String>,
    jpeg: Option<String>,
    name: Option<String>,
    value: Option<String>,
    traceback: Option<String>,
}

/// `GET /ui/sandboxes/{id}/code`.
pub(super) async fn page(State(app): State<Arc<App>>, visitor: Visitor, Sandbox(id): Sandbox) -> Result<Response, ApiError> {
    let sandbox = visitor.caller.runtime.sandbox(&id)?;
    let cells = app.notebooks.cells(&(visitor.caller.team.clone(), id));
    let viewer = visitor.viewer();
    Ok(answer::page(pages::notebook(&viewer, place(&viewer, Section::Sandboxes), &head(&sandbox), &cells)))
}

/// `POST /ui/sandboxes/{id}/code`: runs a cell to its end, and shows it with those before.
pub(super) async fn run(State(app): State<Arc<App>>, Sandbox(id): Sandbox, form: Form) -> Result<Response, ApiError> {
    let sandbox = form.visitor.caller.runtime.sandbox(&id)?;
    let code = form.need("code")?.replace("\r\n", "\n");
    let language = form.need("language")?;
    let language = LANGUAGES.iter().find(|known| **known == language).ok_or_else(|| ApiError::bad_request("no such language"))?;
    if code.len() > MAX_TEXT_BYTES {
        return Err(ApiError::too_large(MAX_TEXT_BYTES));
    }
    // One that is paused is not woken by a page that does not know it yet.
    if sandbox.state != SandboxState::Running {
        return Err(ApiError::conflict(format!("sandbox `{id}` is paused: resume it first")));
    }
    let running = app.notebooks.begin(form.visitor.caller.team.clone()).ok_or_else(|| ApiError::too_many_cells(MAX_RUNNING))?;
    let (answer, cut) = execute(&app, &sandbox, &code, language).await?;
    let (outputs, pictures, left_out) = outputs(&answer);
    drop(running);
    let cell = Cell { number: 0, language: (*language).to_owned(), code, outputs, cut: cut || left_out };
    app.notebooks.add((form.visitor.caller.team.clone(), id.clone()), cell, pictures);
    Ok(Redirect::to(&format!("/ui/sandboxes/{id}/code#new")).into_response())
}

/// `GET /ui/sandboxes/{id}/code/{cell}/{at}`.
pub(super) async fn picture(
    State(app): State<Arc<App>>,
    visitor: Visitor,
    Path((id, cell, at)): Path<(String, u64, usize)>,
) -> Result<Response, ApiError> {
    let id: SandboxId = id.parse()?;
    visitor.caller.runtime.sandbox(&id)?;
    let found = app.notebooks.picture(&(visitor.caller.team.clone(), id), (cell, at));
    let picture = found.ok_or_else(|| ApiError::not_found("this picture is not kept any more".to_owned()))?;
    let media_type = image_type(&picture).ok_or_else(|| ApiError::bad_request("this is no picture"))?;
    Ok(([(header::CONTENT_TYPE, media_type), (header::CONTENT_SECURITY_POLICY, CONFINED)], picture).into_response())
}

/// What the interpreter says of a cell, as far as it is read, and whether there was more.
async fn execute(app: &App, sandbox: &RuntimeSandbox, code: &str, language: &str) -> Result<(Vec<u8>, bool), ApiError> {
    let body = serde_json::json!({ "code": code, "language": language }).to_string();
    let mut request = Request::post("/execute").header(header::CONTENT_TYPE, "application/json");
    if let Some(token) = &sandbox.envd_access_token {
        request = request.header(ACCESS_TOKEN, token);
    }
    let request = request.body(Body::from(body)).map_err(|error| ApiError::bad_request(error.to_string()))?;
    let target = Target { id: sandbox.id.clone(), port: PORT };
    let read = async {
        let response = proxy::forward(&app.pool, target, request).await.map_err(|error| ApiError::unreachable(&error))?;
        let status = response.status();
        let (mut body, mut read) = (response.into_body(), Vec::new());
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame.map_err(|error| ApiError::unreachable(&error))?.into_data() else { continue };
            if read.len() + data.len() > MAX_ANSWER_BYTES {
                return Ok((read, true));
            }
            read.extend_from_slice(&data);
        }
        if status.is_success() { Ok((read, false)) } else { Err(ApiError::bad_request(text_of(&read))) }
    };
    let late = |_| ApiError::conflict(format!("the cell did not end in {} s; it may still run", PATIENCE.as_secs()));
    tokio::time::timeout(PATIENCE, read).await.map_err(late)?
}

fn text_of(bytes: &[u8]) -> String {
    format!("the interpreter refused the cell: {}", String::from_utf8_lossy(&bytes[..bytes.len().min(1000)]))
}

/// A text without what would colour it in a terminal, and without other controls.
fn without_escapes(text: &str) -> String {
    let (mut plain, mut letters) = (String::with_capacity(text.len()), text.chars());
    while let Some(letter) = letters.next() {
        match letter {
            '\x1b' => {
                if letters.next() == Some('[') {
                    // What ends a sequence of this kind is the first letter of this range (ECMA-48, 5.4).
                    letters.by_ref().find(|letter| ('@'..='~').contains(letter));
                }
            }
            '\n' | '\t' => plain.push(letter),
            letter if letter.is_control() => {}
            letter => plain.push(letter),
        }
    }
    plain
}

/// Events as what is shown of them, the pictures among them, and whether something is left out.
fn outputs(answer: &[u8]) -> (Vec<Output>, Vec<Bytes>, bool) {
    let (mut outputs, mut pictures, mut left, mut left_out) = (Vec::new(), Vec::new(), MAX_TEXT_BYTES, false);
    let mut kept = |text: String| {
        let text = without_escapes(&text);
        let mut end = text.len().min(left);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        left -= end;
        left_out |= end < text.len();
        text[..end].to_owned()
    };
    let mut is_more = false;
    for line in answer.split(|byte| *byte == b'\n') {
        let Ok(event) = serde_json::from_slice::<Event>(line) else { continue };
        if outputs.len() >= MAX_OUTPUTS {
            is_more = true;
            break;
        }
        let text = event.text.unwrap_or_default();
        match event.r#type.as_str() {
            "stdout" => match outputs.last_mut() {
                Some(Output::Text(so_far)) => so_far.push_str(&kept(text)),
                _ => outputs.push(Output::Text(kept(text))),
            },
            "stderr" => match outputs.last_mut() {
                Some(Output::Trouble(so_far)) => so_far.push_str(&kept(text)),
                _ => outputs.push(Output::Trouble(kept(text))),
            },
            "result" => {
                let picture = event.png.or(event.jpeg).and_then(|text| STANDARD.decode(text.replace('\n', "")).ok());
                match picture.filter(|bytes| image_type(bytes).is_some()) {
                    Some(bytes) => {
                        outputs.push(Output::Picture(pictures.len()));
                        pictures.push(Bytes::from(bytes));
                    }
                    None => outputs.push(Output::Value(kept(text))),
                }
            }
            "error" => {
                let short = format!("{}: {}", event.name.unwrap_or_default(), event.value.unwrap_or_default());
                outputs.push(Output::Error(kept(event.traceback.filter(|text| !text.is_empty()).unwrap_or(short))));
            }
            _ => {}
        }
    }
    (outputs, pictures, left_out || is_more)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_become_texts_and_pictures() {
        let png = STANDARD.encode(b"\x89PNG\r\n\x1a\nrest");
        let html = STANDARD.encode(b"<svg onload=alert(1)>");
        let answer = format!(
            "{{\"type\":\"stdout\",\"text\":\"a\"}}\n{{\"type\":\"stdout\",\"text\":\"b\"}}\nnonsense\n\
             {{\"type\":\"result\",\"text\":\"fig\",\"png\":\"{png}\"}}\n{{\"type\":\"result\",\"text\":\"no picture\",\"png\":\"{html}\"}}\n\
             {{\"type\":\"result\",\"text\":\"42\",\"html\":\"<b>42</b>\"}}\n{{\"type\":\"error\",\"name\":\"E\",\"value\":\"v\"}}\n{{\"type\":\"x\"}}"
        );
        let (found, pictures, cut) = outputs(answer.as_bytes());
        let text = |text: &str| text.to_owned();
        assert_eq!(
            found,
            [
                Output::Text(text("ab")),
                Output::Picture(0),
                Output::Value(text("no picture")),
                Output::Value(text("42")),
                Output::Error(text("E: v")),
            ]
        );
        assert_eq!((pictures.len(), cut), (1, false));
        assert_eq!(without_escapes("\x1b[0;31mred\x1b[0m\r\n\tb\x1b(x\x1b[1"), "red\n\tbx");
        let long = format!("{{\"type\":\"stdout\",\"text\":\"{}\"}}", "é".repeat(MAX_TEXT_BYTES));
        let (found, _, cut) = outputs(long.as_bytes());
        assert!(matches!(&found[0], Output::Text(text) if text.len() <= MAX_TEXT_BYTES) && cut);
        // As many as a guest can name in what is read of it: of one kind they are one, and of several there are so many.
        let (found, _, cut) = outputs("{\"type\":\"stderr\"}\n".repeat(400_000).as_bytes());
        assert_eq!((found.len(), cut), (1, false));
        let (found, _, cut) = outputs("{\"type\":\"stderr\"}\n{\"type\":\"stdout\"}\n".repeat(200_000).as_bytes());
        assert_eq!((found.len(), cut), (MAX_OUTPUTS, true));
    }
}
