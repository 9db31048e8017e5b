//! The template of E2B's desktop SDK: an X server, a session and a browser that run in the snapshot.
//!
//! The SDK starts the X server and the session itself in every sandbox, by their names, and waits for them. Here programs of the
//! same names come first on the path: they find what runs already, give the display the size that was asked for, and are done.
//! So a desktop is a restore, and the SDK need not know.

use std::time::Duration;

use crate::{ground::reference::DESKTOP, images::standard::BuildTemplate, machine::guest_file::GuestFile};

/// Where Debian's noVNC is, and where the SDK looks for it.
const NOVNC: &str = "ln -sfn /usr/share/novnc /opt/noVNC && ln -sf vnc.html /usr/share/novnc/index.html";

/// The browser's first start asks nothing, draws without a graphics card, and keeps no passwords in a ring that asks for one. Its
/// name with others is `google-chrome`.
const BROWSER: &str = "mkdir -p /etc/chromium.d && echo 'export CHROMIUM_FLAGS=\"$CHROMIUM_FLAGS --disable-gpu --no-first-run \
                       --no-default-browser-check --password-store=basic\"' >/etc/chromium.d/desktop && \
                       ln -sf chromium.desktop /usr/share/applications/google-chrome.desktop && \
                       ln -sf ../../bin/chromium /usr/local/bin/google-chrome";

/// A window manager that composes windows keeps a second picture of each: memory, and work that an emulated processor feels.
const WINDOWS: &str = "echo '<?xml version=\"1.0\" encoding=\"UTF-8\"?><channel name=\"xfwm4\" version=\"1.0\"><property name=\"general\" \
                       type=\"empty\"><property name=\"use_compositing\" type=\"bool\" value=\"false\"/></property></channel>' \
                       >/etc/xdg/xfce4/xfconf/xfce-perchannel-xml/xfwm4.xml";

/// From the start of the X server to a drawn session with a browser: two minutes on an idle emulated processor.
const READY_DEADLINE: Duration = Duration::from_secs(1200);

impl BuildTemplate {
    /// The template of E2B's desktop SDK, whose root image must have its programs.
    pub fn desktop() -> Self {
        let program = |path: &str, content: &'static str| GuestFile {
            path: format!("/usr/local/bin/{path}"),
            mode: 0o755,
            content: content.as_bytes(),
        };
        Self {
            name: DESKTOP.to_owned(),
            cpus: 2,
            memory_mib: 4096,
            files: vec![
                program("Xvfb", include_str!("desktop/Xvfb.sh")),
                program("xdpyinfo", include_str!("desktop/xdpyinfo.sh")),
                program("desktop-settled", include_str!("desktop/desktop-settled.sh")),
                program("startxfce4", include_str!("desktop/startxfce4.sh")),
                program("desktop-screen", include_str!("desktop/desktop-screen.sh")),
                program("desktop-start", include_str!("desktop/desktop-start.sh")),
                program("desktop-ready", include_str!("desktop/desktop-ready.sh")),
            ],
            setup: vec![NOVNC.to_owned(), BROWSER.to_owned(), WINDOWS.to_owned()],
            start: Some("desktop-start".to_owned()),
            ready: Some("desktop-ready".to_owned()),
            ready_deadline: READY_DEADLINE,
            ..Self::base()
        }
    }
}
