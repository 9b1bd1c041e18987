//! A real browser on a host: Debian's Chromium without a screen, driven over the WebDriver protocol (W3C), which is JSON
//! over plain HTTP.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::error::{Context, Error, Result};
use super::host::Host;
use super::look::{Look, wait};
use super::package::{CHROMIUM, Tree};
use super::process::Proc;

/// How long the driver may take to start, and one command to be answered; reached only in failure.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);

/// What the browser must not do by itself: a test's network has nobody to ask, and each of these would be a request that
/// the page did not make.
const QUIET: &[&str] = &[
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-sync",
    "--disable-breakpad",
];

/// A browser with one window. Both its processes end with it.
pub struct Browser {
    host: Host,
    driver: SocketAddr,
    session: String,
    home: PathBuf,
    proc: Proc,
}

/// What a window is like.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    /// Its width in CSS pixels.
    pub width: u32,
    /// Its height in CSS pixels.
    pub height: u32,
    /// Whether its reader likes dark pages.
    pub dark: bool,
}

impl Browser {
    /// Starts a browser on a host, whose network is all that it reaches.
    ///
    /// # Errors
    /// NOT RUN where the programs cannot be had; failed where they do not start.
    pub fn start(host: &Host) -> Result<Browser> {
        let tree = CHROMIUM.fetch()?;
        // Everything it would keep in its user's directories goes with the host.
        let home = host.dir().join("browser");
        fs::create_dir_all(&home).context(home.display())?;
        let mut command = host.command_from(&tree, "chromedriver")?.arg("--port=0");
        for name in ["HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "TMPDIR"] {
            command = command.env(name, &home);
        }
        if let Some(fonts) = fonts_of(&tree, &home)? {
            command = command.env("FONTCONFIG_FILE", fonts);
        }
        let proc = command.spawn()?;
        let line = proc.wait_for_output("started successfully on port", ANSWER_LIMIT)?;
        let port = line.trim_end_matches('.').rsplit(' ').next().and_then(|port| port.parse().ok());
        let port: u16 = port.ok_or_else(|| Error::failed(format!("the browser's driver says {line:?}")))?;
        let driver = SocketAddr::from(([127, 0, 0, 1], port));
        let mut browser = Browser { host: host.clone(), driver, session: String::new(), home, proc };
        browser.open_session(&tree)?;
        Ok(browser)
    }

    fn open_session(&mut self, tree: &Tree) -> Result<()> {
        // Debian's /usr/bin/chromium is a script that looks around on the machine; this is the program.
        let direct = tree.root().join("usr/lib/chromium/chromium");
        let binary = if direct.is_file() { direct } else { tree.program("chromium")? };
        let profile = format!("--user-data-dir={}", self.home.join("profile").display());
        let args: Vec<&str> = QUIET.iter().copied().chain([profile.as_str()]).collect();
        let wanted = json!({"capabilities": {"alwaysMatch": {
            "goog:chromeOptions": {"args": args, "binary": binary},
            "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
        }}});
        let told = self.request("POST", "/session", &wanted)?;
        let session = told["sessionId"].as_str();
        session.ok_or_else(|| Error::failed(format!("no browser session: {told}")))?.clone_into(&mut self.session);
        Ok(())
    }

    /// Makes the window so.
    ///
    /// # Errors
    /// Where the browser refuses.
    pub fn set_window(&self, window: Window) -> Result<()> {
        let size = json!({"width": window.width, "height": window.height, "deviceScaleFactor": 1, "mobile": false});
        self.devtools("Emulation.setDeviceMetricsOverride", &size)?;
        let scheme = if window.dark { "dark" } else { "light" };
        let media = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        self.devtools("Emulation.setEmulatedMedia", &media).map(drop)
    }

    /// Lets the browser show colours as an eye with that deficiency sees them: `deuteranopia`, `none`, …
    ///
    /// # Errors
    /// Where the browser does not know it.
    pub fn see_with(&self, deficiency: &str) -> Result<()> {
        self.devtools("Emulation.setEmulatedVisionDeficiency", &json!({"type": deficiency})).map(drop)
    }

    /// Goes to an address.
    ///
    /// # Errors
    /// Where nothing answers there.
    pub fn open(&self, address: &str) -> Result<()> {
        self.session_call("POST", "/url", &json!({"url": address})).map(drop)
    }

    /// Runs a function's body in the page and returns its answer; `arguments` are its arguments.
    ///
    /// # Errors
    /// Where it throws.
    pub fn run(&self, script: &str, arguments: Value) -> Result<Value> {
        self.session_call("POST", "/execute/sync", &json!({"script": script, "args": arguments}))
    }

    /// Runs a function's body whose answer is a promise, and returns what that becomes.
    ///
    /// # Errors
    /// Where it throws or is rejected.
    pub fn run_async(&self, script: &str) -> Result<Value> {
        // The driver waits for what a script returns, also where it is a promise.
        self.run(&format!("return (async () => {{ {script} }})();"), json!([]))
    }

    /// Returns the text that a person sees of the first element that matches a CSS selector.
    ///
    /// # Errors
    /// Where there is none.
    pub fn text(&self, selector: &str) -> Result<String> {
        let told = self.run("return document.querySelector(arguments[0]).innerText", json!([selector]))?;
        Ok(told.as_str().unwrap_or_default().to_owned())
    }

    /// Waits until a script's answer is true.
    ///
    /// # Errors
    /// Where the time runs out; with the page's text.
    pub fn wait_for(&self, what: &str, script: &str, limit: Duration) -> Result<()> {
        wait(format_args!("the page shows {what}"), limit, || match self.run(script, json!([]))? == json!(true) {
            true => Ok(Look::Found(())),
            false => Ok(Look::NotYet(self.text("body").unwrap_or_default())),
        })
    }

    /// Moves the pointer to a place of the window in CSS pixels, and presses where `press` says so.
    ///
    /// # Errors
    /// Where the place is outside the window.
    pub fn point(&self, x: f64, y: f64, press: bool) -> Result<()> {
        let mut actions = vec![json!({"type": "pointerMove", "duration": 0, "x": x as i64, "y": y as i64})];
        if press {
            actions.extend([json!({"type": "pointerDown", "button": 0}), json!({"type": "pointerUp", "button": 0})]);
        }
        let mouse =
            json!({"type": "pointer", "id": "mouse", "parameters": {"pointerType": "mouse"}, "actions": actions});
        self.session_call("POST", "/actions", &json!({"actions": [mouse]})).map(drop)
    }

    /// Types keys at the element that has the focus; `\u{e007}` and its like are those without a letter (W3C WebDriver
    /// §17.4.2).
    ///
    /// # Errors
    /// Where the browser refuses.
    pub fn keys(&self, keys: &str) -> Result<()> {
        let strokes = keys.chars().flat_map(|key| ["keyDown", "keyUp"].map(|kind| json!({"type": kind, "value": key})));
        let keyboard = json!({"type": "key", "id": "keyboard", "actions": strokes.collect::<Vec<_>>()});
        self.session_call("POST", "/actions", &json!({"actions": [keyboard]})).map(drop)
    }

    /// Keeps a picture of the window as `NAME.png` below the lab's part of the build directory, to be looked at.
    ///
    /// # Errors
    /// Where there is no picture or no place for it.
    pub fn picture(&self, name: &str) -> Result<PathBuf> {
        let told = self.session_call("GET", "/screenshot", &Value::Null)?;
        let png = STANDARD.decode(told.as_str().unwrap_or_default()).context("a picture")?;
        let directory = super::place::lab()?.join("pictures");
        fs::create_dir_all(&directory).context(directory.display())?;
        let path = directory.join(format!("{name}.png"));
        fs::write(&path, png).context(path.display())?;
        Ok(path)
    }

    /// Returns the lines of the page's console since the last call, each with its level.
    ///
    /// # Errors
    /// Where the browser refuses.
    pub fn console(&self) -> Result<Vec<(String, String)>> {
        let text = |entry: &Value, key: &str| entry[key].as_str().unwrap_or_default().to_owned();
        let told = self.session_call("POST", "/se/log", &json!({"type": "browser"}))?;
        let entries = told.as_array().into_iter().flatten();
        Ok(entries.map(|entry| (text(entry, "level"), text(entry, "message"))).collect())
    }

    /// Returns the address of every request since the last call.
    ///
    /// # Errors
    /// Where the browser refuses.
    pub fn requests(&self) -> Result<Vec<String>> {
        let told = self.session_call("POST", "/se/log", &json!({"type": "performance"}))?;
        let entries = told.as_array().into_iter().flatten();
        let events = entries.filter_map(|entry| serde_json::from_str::<Value>(entry["message"].as_str()?).ok());
        let request = |event: Value| {
            let event = &event["message"];
            (event["method"] == "Network.requestWillBeSent")
                .then(|| event["params"]["request"]["url"].as_str().map(str::to_owned))
        };
        Ok(events.filter_map(request).flatten().collect())
    }

    fn devtools(&self, command: &str, parameters: &Value) -> Result<Value> {
        self.session_call("POST", "/goog/cdp/execute", &json!({"cmd": command, "params": parameters}))
    }

    fn session_call(&self, method: &str, path: &str, body: &Value) -> Result<Value> {
        self.request(method, &format!("/session/{}{path}", self.session), body)
    }

    /// Asks the driver, and returns the `value` of its answer.
    fn request(&self, method: &str, path: &str, body: &Value) -> Result<Value> {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let what = format!("the browser's {method} {path}");
        let answer = self.exchange(method, path, &body).context(&what)?;
        let told: Value = serde_json::from_str(&answer).context(format_args!("{what}: {answer}"))?;
        match told["value"]["error"].as_str() {
            Some(error) => Err(Error::failed(format!("{what}: {error}: {}", told["value"]["message"]))),
            None => Ok(told["value"].clone()),
        }
    }

    fn exchange(&self, method: &str, path: &str, body: &str) -> std::io::Result<String> {
        let mut stream = self.host.enter(|| TcpStream::connect(self.driver))?;
        stream.set_read_timeout(Some(ANSWER_LIMIT))?;
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\ncontent-type: application/json\r\n\
             content-length: {}\r\n\r\n{body}",
            self.driver,
            body.len()
        )?;
        // The driver leaves the connection open whatever it is asked, so the length in its answer is what ends it.
        let mut answer = BufReader::new(stream);
        let (mut line, mut length) = (String::new(), 0);
        while answer.read_line(&mut line)? > 0 && line != "\r\n" {
            if let Some((name, value)) = line.split_once(':')
                && name.eq_ignore_ascii_case("content-length")
            {
                length = value.trim().parse().map_err(std::io::Error::other)?;
            }
            line.clear();
        }
        let mut body = String::new();
        answer.take(length).read_to_string(&mut body)?;
        Ok(body)
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // The driver ends the browser, and both are gone before their files are; the host's end would kill what is left.
        if !self.session.is_empty() {
            let _ = self.session_call("DELETE", "", &Value::Null);
        }
        let _ = self.proc.stop(ANSWER_LIMIT);
        let _ = fs::remove_dir_all(&self.home);
    }
}

/// Tells an unpacked browser where its fonts are; one of this machine's own knows.
fn fonts_of(tree: &Tree, home: &Path) -> Result<Option<PathBuf>> {
    if tree.root() == Path::new("/") {
        return Ok(None);
    }
    let path = home.join("fonts.conf");
    let (fonts, cache) = (tree.root().join("usr/share/fonts"), home.join("fonts"));
    let text = format!(
        "<?xml version=\"1.0\"?>\n<fontconfig><dir>/usr/share/fonts</dir><dir>{}</dir><cachedir>{}</cachedir>\n\
         <match><edit name=\"family\" mode=\"append\" binding=\"weak\"><string>DejaVu Sans</string></edit></match></fontconfig>\n",
        fonts.display(),
        cache.display()
    );
    fs::write(&path, text).context(path.display())?;
    Ok(Some(path))
}
