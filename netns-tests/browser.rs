//! The page for browsers, in a real one: what people see, click and are told when the daemon is gone.
//!
//! Pictures of each view are kept below `lab/pictures` of the build directory, to be looked at.

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use meshd::config::{HistorySettings, Web};
use meshd::history::{Batch, Store};
use meshd::identity::NodeId;
use meshd::telemetry::{Bucket, Sealed};
use meshd::time::UnixTime;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::harness::Case;
use crate::lab::browser::{Browser, Window};
use crate::lab::error::Context;
use crate::lab::package::CHROMIUM;
use crate::lab::{Error, Lab, Result};
use crate::page_fixture::{CUT, DISPUTED, ILL, NODES, Paper, SELF, SILENT, SLOWED, UNWELL};
use crate::scene::{DELAY, LONG, Scene};

/// The cases of this file.
pub const CASES: &[Case] = &[
    Case { name: "browser::a_cut_and_a_slowed_link_are_seen", needs: &[&CHROMIUM], run: real_mesh },
    Case { name: "browser::two_hundred_nodes_are_one_picture", needs: &[&CHROMIUM], run: two_hundred_nodes },
    Case { name: "browser::a_larger_mesh_is_shown_by_site", needs: &[&CHROMIUM], run: by_site },
    Case { name: "browser::colours_survive_every_eye", needs: &[&CHROMIUM], run: colours },
];

/// The smallest screen that counts as one, and a telephone.
const SCREEN: Window = Window { width: 1280, height: 720, dark: false };
const DARK: Window = Window { dark: true, ..SCREEN };
const TELEPHONE: Window = Window { width: 390, height: 844, dark: false };

/// Where the page of a real daemon is served.
const LISTEN: ([u8; 4], u16) = ([127, 0, 0, 1], Web::PORT);

/// Keys without a letter (W3C WebDriver §17.4.2).
const ENTER: &str = "\u{e007}";
const ESCAPE: &str = "\u{e00c}";
const HOME: &str = "\u{e011}";
const RIGHT: &str = "\u{e014}";

/// Whether a view has been drawn from an answer.
fn shown(view: &str) -> String {
    format!(
        "return document.documentElement.dataset.shown === '{view}' && !document.getElementById('{view}-view').hidden"
    )
}

/// Whether an element's text contains these words.
fn says(selector: &str, words: &str) -> String {
    format!("return document.querySelector({}).innerText.includes({})", json!(selector), json!(words))
}

/// Whether all six links of the real mesh answer, well or badly: probes lost while a daemon starts may degrade them.
const ALL_ANSWER: &str = "const told = document.querySelector('#counts').innerText;
    return told.includes('of 6 links') && !/down|suspect|not up|unknown/.test(told)";

/// Moves the pointer over the heat-map until the hint names these two nodes, as a person would; returns where that was.
fn find_cell(browser: &Browser, from: &str, to: &str) -> Result<(f64, f64)> {
    let told = browser.run(
        "document.getElementById('matrix').scrollIntoView();
         const box = document.getElementById('matrix').getBoundingClientRect();
         return [box.left, box.top, Math.min(box.right, innerWidth), Math.min(box.bottom, innerHeight)];",
        json!([]),
    )?;
    let edge = |index: usize| told[index].as_f64().unwrap_or_default();
    let wanted = format!("{from} → {to}:");
    let hint = |x: f64, y: f64| -> Result<String> {
        browser.point(x, y, false)?;
        let shown = "const hint = document.getElementById('hint'); return hint.hidden ? '' : hint.innerText";
        let text = browser.run(shown, json!([]))?;
        Ok(text.as_str().unwrap_or_default().to_owned())
    };
    // Down the map to the row, wherever a cell lies on the way; then along the row to the column.
    let ways = [0.2, 0.3, 0.4, 0.55, 0.7].map(|share| edge(0) + share * (edge(2) - edge(0)));
    for y in steps(edge(1), edge(3)) {
        let mut told = String::new();
        for x in ways {
            told = hint(x, y)?;
            if !told.is_empty() {
                break;
            }
        }
        if !told.starts_with(&format!("{from} →")) && !told.starts_with(&format!("{from}:")) {
            continue;
        }
        for x in steps(edge(0), edge(2)) {
            if hint(x, y)?.starts_with(&wanted) {
                // Not on the edge: the smallest cell has three pixels.
                return Ok((x + 1.0, y + 1.0));
            }
        }
    }
    Err(Error::failed(format!("no cell of the heat-map says {wanted:?}")))
}

/// Places to point at between two edges: two thirds of the smallest cell apart, so that none is passed over.
fn steps(from: f64, to: f64) -> impl Iterator<Item = f64> {
    (0..).map(move |step| from + 2.0 * f64::from(step)).take_while(move |place| *place < to)
}

/// The page made no mistake, and asked nobody but the daemon.
fn check_manners(browser: &Browser, origin: &str) -> Result<()> {
    let console = browser.console()?;
    // The browser's own pages have a console, too.
    let mistakes: Vec<_> = console.iter().filter(|(_, message)| !message.starts_with("chrome")).collect();
    assert!(mistakes.is_empty(), "{mistakes:?}");
    let requests = browser.requests()?;
    assert!(requests.len() > 10, "requests are seen at all: {requests:?}");
    // What a browser loads for a new window of its own comes from itself.
    let own =
        |url: &&String| !["chrome://", "chrome-untrusted://", "data:", "about:"].iter().any(|own| url.starts_with(own));
    let strays: Vec<&String> = requests.iter().filter(own).filter(|url| !url.starts_with(origin)).collect();
    assert!(strays.is_empty(), "the page asked elsewhere: {strays:?}");
    Ok(())
}

/// ```text
///     a---b           a: serves the page; the browser runs there
///     |\ /|           b-c: cut while the page is open
///     | X |           a-d: slowed
///     |/ \|
///     d---c
/// ```
fn real_mesh(lab: &Lab) -> Result<()> {
    let scene = Scene::running(lab, &["a", "b", "c", "d"])?;
    let (mesh, all) = (&scene.mesh, scene.all());
    let listen = SocketAddr::from(LISTEN);
    mesh.change_config(all[0], |config| config.web.listen = Some(listen))?;
    let daemon = mesh.daemon(all[0])?;
    daemon.signal(Signal::SIGHUP);
    daemon.wait_for_output("web.listen is served on", LONG)?;
    let browser = Browser::start(all[0])?;
    browser.set_window(SCREEN)?;
    let address = format!("http://{listen}/");
    browser.open(&address)?;
    browser.wait_for("six links up", ALL_ANSWER, LONG)?;
    assert!(browser.text("#observer")?.starts_with("seen from a, meshd "));
    // While the page is open, and without a hand on it.
    let began = Instant::now();
    scene.wan.link(all[1], all[2]).cut(true);
    browser.wait_for("the cut link as down", &says("#worst tbody", "✕ down"), LONG)?;
    println!("    a link between two others was cut: on the page as down after {:.2?}", began.elapsed());
    let worst = browser.text("#worst tbody tr")?;
    assert!(worst.starts_with("b → c") || worst.starts_with("c → b"), "{worst}");
    find_cell(&browser, "b", "c")?;
    let hint = browser.text("#hint")?;
    assert!(hint.contains("b → c: ✕ down") && hint.contains("c → b: ✕ down"), "{hint}");
    browser.picture("mesh-cut")?;
    scene.wan.link(all[1], all[2]).cut(false);
    browser.wait_for("all links up again", ALL_ANSWER, LONG)?;
    // By keys alone, from the start: the first row is this node's, its second cell the link to b.
    browser.run("document.getElementById('matrix').focus()", json!([]))?;
    browser.keys(&[ESCAPE, HOME, RIGHT].concat())?;
    assert!(
        browser
            .run("return document.getElementById('spoken').textContent", json!([]))?
            .as_str()
            .is_some_and(|text| text.starts_with("a → b: "))
    );
    browser.keys(ENTER)?;
    browser.wait_for("the link to b", &says("#link-title", "a → b"), LONG)?;
    browser.wait_for("its series", &says("#reading", "p50"), LONG)?;
    // The link can be sent to somebody: the same place without a way to it.
    let link = browser.run("return location.href", json!([]))?.as_str().unwrap_or_default().replace("24h", "1h");
    browser.open("about:blank")?;
    browser.open(&link)?;
    browser.wait_for("an hour of the link to b", &says("#reading", "p50"), LONG)?;
    assert_eq!(browser.text("#link-title")?, "a → b");
    assert!(browser.text("#reading")?.contains(" ms"), "{}", browser.text("#reading")?);
    browser.picture("link-real")?;
    check_manners(&browser, &address)?;
    // A name that is no peer, and a range that is none.
    browser.open(&format!("{address}#peer=nobody&range=9d"))?;
    browser.wait_for("that there is no such node", &says("#link-problem", "nobody"), LONG)?;
    // The daemon goes: the page says so and since when, and nothing on it looks live. It comes back: all is as before.
    browser.open(&address)?;
    browser.wait_for("the mesh", ALL_ANSWER, LONG)?;
    let began = Instant::now();
    mesh.kill(all[0])?;
    browser.wait_for("that the daemon is silent", &says("#silence", "The last answer came at"), LONG)?;
    println!("    the daemon was killed: the page says so after {:.2?}", began.elapsed());
    let stale = "return document.documentElement.classList.contains('stale')";
    assert_eq!(browser.run(stale, json!([]))?, json!(true));
    assert!(browser.text("#counts")?.contains("of 6 links"), "what was known stays to be read");
    browser.picture("mesh-silent")?;
    // Back again, with two days behind it in which the link to d was as fast as the others; now it is not.
    let ids = mesh.status(all[1])?.peers;
    let d = ids.iter().find(|peer| peer.name == "d").ok_or_else(|| Error::failed("b does not know d"))?;
    remember(&mesh.state(all[0]).join(HistorySettings::FILE), &d.node_id, "d", DELAY * 2)?;
    scene.wan.link(all[0], all[3]).delay(DELAY * 6);
    mesh.start(&all[..1])?;
    browser.wait_for("the daemon again", "return document.getElementById('silence').hidden", LONG)?;
    assert_eq!(browser.run(stale, json!([]))?, json!(false));
    browser.run("document.querySelector('input[value=\"deviation\"]').click()", json!([]))?;
    // The usual is worked out with the first minute that is written.
    let slower = r"return /a → d.*\+(9|10)\.\d+ ms/.test(document.querySelector('#worst tbody').innerText)";
    browser.wait_for("the slowed link", slower, 2 * LONG)?;
    find_cell(&browser, "a", "d")?;
    let hint = browser.text("#hint")?;
    assert!(hint.contains("usual 2.") && hint.contains("ms, +"), "{hint}");
    browser.picture("mesh-slowed")?;
    // A click on its cell opens what the link was like: usual and now, over the week.
    let (x, y) = find_cell(&browser, "a", "d")?;
    browser.point(x, y, true)?;
    browser.wait_for("the link to d", &says("#link-title", "a → d"), LONG)?;
    browser.run("document.querySelector('[data-range=\"7d\"]').click()", json!([]))?;
    browser.wait_for("two days of it", &says("#series-note", "of 505 steps of 20 min are known"), LONG)?;
    let known: u32 =
        browser.text("#series-note")?.split(' ').next().and_then(|number| number.parse().ok()).unwrap_or(0);
    assert!((140..=147).contains(&known), "{}", browser.text("#series-note")?);
    browser.picture("link-slowed")?;
    Ok(())
}

/// Writes into a daemon's history, while it does not run, that a link had this round trip for two days: a minute in ten.
fn remember(path: &Path, node: &str, name: &str, rtt: Duration) -> Result<()> {
    let node: NodeId = node.parse().context("a node's identifier")?;
    let now =
        UnixTime::from_secs(SystemTime::now().duration_since(UNIX_EPOCH).context("a clock after 1970")?.as_secs());
    let minute = |number: u64| {
        let mut bucket = Bucket { up_millis: 60_000, ..Bucket::default() };
        for probe in 0..60 {
            let path = rtt + Duration::from_micros(200 + probe % 7);
            bucket.answer(path, path + Duration::from_micros(90), Duration::from_micros(40), Duration::from_micros(90));
        }
        let minute = UnixTime::from_secs((now.as_secs() / 600 - number) * 600);
        Sealed { node, name: name.to_owned(), minute, bucket }
    };
    let (mut store, aside) = Store::open(path, HistorySettings::default().max_size, now).context("the history")?;
    assert_eq!(aside, None, "the daemon's file is whole, though it was killed");
    let buckets = (2..290).rev().map(minute).collect();
    store.write(&Batch { buckets, events: Vec::new() }).context("the history")?;
    store.settle(now).context("the history")
}

/// One host, on whose loopback the real page server stands before a mesh on paper.
fn two_hundred_nodes(lab: &Lab) -> Result<()> {
    let host = lab.host("desk")?;
    let paper = Paper::serve(&host)?;
    let browser = Browser::start(&host)?;
    browser.set_window(SCREEN)?;
    let began = Instant::now();
    browser.open(&paper.address)?;
    browser.wait_for("the mesh", &shown("mesh"), LONG)?;
    println!("    {NODES} nodes: drawn {:.2?} after the page was asked for", began.elapsed());
    // Trouble comes first: one line for the node that is ill, the links that are down, slower, in dispute.
    let counts = browser.text("#counts")?;
    for words in ["✕ 1 down", "▨ 199 unknown", "▲ 198 degraded", "of 19,900 links", "rows of 199 of 200 nodes"] {
        assert!(counts.contains(words), "{words:?} in {counts:?}");
    }
    let problems = browser.text("#problems")?;
    assert!(problems.contains(&format!("▲ {ILL}: 199 of its 199 links")), "{problems}");
    assert!(
        problems.contains(&format!("▨ {UNWELL}: ")) && problems.contains("certificate ends in 20 days"),
        "{problems}"
    );
    let worst = browser.text("#worst tbody tr")?;
    assert!(worst.contains(CUT.0) && worst.contains(CUT.1) && worst.contains("✕ down"), "{worst}");
    let worst = browser.text("#worst tbody")?;
    let slowed = worst.lines().find(|line| line.contains(SLOWED.0) && line.contains(SLOWED.1));
    assert!(slowed.is_some_and(|line| line.contains("up") && line.contains('+')), "{worst}");
    browser.picture("mesh-200")?;
    // A click on a cell opens its link. The cell is found as a person finds it: by what the pointer is told.
    let (x, y) = find_cell(&browser, SELF, "gra-05")?;
    let began = Instant::now();
    browser.point(x, y, true)?;
    browser.wait_for("the link", &shown("link"), LONG)?;
    println!("    a click: its link's day is drawn after {:.2?}", began.elapsed());
    assert_eq!(browser.text("#link-title")?, format!("{SELF} → gra-05"));
    let reading = browser.text("#reading")?;
    assert!(reading.contains("p50 12.6 ms") || reading.contains("p50 12."), "{reading}");
    for words in ["p5 to p95", "p99", "a week before", "loss back", "tunnel p50", "host delay p50"] {
        assert!(reading.contains(words), "{words:?} in {reading:?}");
    }
    assert!(browser.text("#events tbody")?.contains("step of +2.30 ms"));
    browser.picture("link-24h")?;
    // Each range by its link, and what was a gap is told as one.
    browser.run("document.querySelector('[data-range=\"1h\"]').click()", json!([]))?;
    browser.wait_for("an hour", &says("#series-note", "steps of 10 s"), LONG)?;
    assert!(browser.text("#series-note")?.contains("a gap is a time nothing is known of"));
    browser.run("document.getElementById('chart').focus()", json!([]))?;
    browser.keys(HOME)?;
    let first = browser.text("#reading")?;
    browser.keys(RIGHT)?;
    let second = browser.text("#reading")?;
    assert!(!first.starts_with("newest") && first.contains("UTC") && first != second, "{first} {second}");
    browser.picture("link-1h")?;
    for range in ["7d", "30d", "1y"] {
        browser.run(&format!("document.querySelector('[data-range=\"{range}\"]').click()"), json!([]))?;
        browser.wait_for(range, &format!("return location.hash.endsWith('range={range}')"), LONG)?;
    }
    browser.wait_for("a year", &says("#series-note", "of 366 steps of 24 h are known"), LONG)?;
    browser.picture("link-1y")?;
    // A link between two others says where its history is; what both say of it is here.
    browser.open(&format!("{}#from={}&peer={}", paper.address, DISPUTED.0, DISPUTED.1))?;
    browser.wait_for(
        "another link",
        &says("#elsewhere", &format!("On {}: meshctl history {}", DISPUTED.0, DISPUTED.1)),
        LONG,
    )?;
    // Whoever gives no answer is seen to give none.
    browser.open(&format!("{}#from={SILENT}&peer={SELF}", paper.address))?;
    browser.wait_for("no answer", &says("#ends", "did not answer"), LONG)?;
    pictures(&browser, &paper.address)?;
    check_manners(&browser, &paper.address)
}

/// A mesh that the daemon shows by its sites: one host, on whose loopback the real page server stands.
fn by_site(lab: &Lab) -> Result<()> {
    let host = lab.host("desk")?;
    let paper = Paper::serve_by_site(&host)?;
    let browser = Browser::start(&host)?;
    browser.set_window(SCREEN)?;
    browser.open(&paper.address)?;
    browser.wait_for("the mesh", &shown("mesh"), LONG)?;
    let counts = browser.text("#counts")?;
    assert!(counts.contains("▲ 7 not up") && counts.contains("of 39,800 directions"), "{counts}");
    find_cell(&browser, "bhs", "par")?;
    let hint = browser.text("#hint")?;
    assert!(hint.contains("400 links") && hint.contains("7 not up"), "{hint}");
    browser.picture("mesh-by-site")?;
    // The links of this node are there all the same.
    browser.open(&format!("{}#peer=gra-05", paper.address))?;
    browser.wait_for("a link", &says("#reading", "p50"), LONG)?;
    let refused =
        |(_, message): &(String, String)| !message.contains("400 (Bad Request)") && !message.starts_with("chrome");
    let console = browser.console()?;
    assert!(!console.iter().any(refused), "{console:?}");
    Ok(())
}

/// What a person has to look at, and that the page fits a telephone.
fn pictures(browser: &Browser, address: &str) -> Result<()> {
    let link = format!("{address}#peer=gra-05&range=7d");
    let deviation = format!("{address}#mode=deviation");
    let takes = [
        ("mesh-200-dark", DARK, address, "none"),
        ("link-7d-dark", DARK, link.as_str(), "none"),
        ("deviation-200", SCREEN, deviation.as_str(), "none"),
        ("mesh-200-deuteranopia", SCREEN, address, "deuteranopia"),
        ("deviation-200-deuteranopia", SCREEN, deviation.as_str(), "deuteranopia"),
        ("mesh-200-telephone", TELEPHONE, address, "none"),
        ("link-7d-telephone", TELEPHONE, link.as_str(), "none"),
    ];
    for (name, window, address, eye) in takes {
        browser.open("about:blank")?;
        browser.set_window(window)?;
        browser.see_with(eye)?;
        browser.open(address)?;
        let view = if address == link { "link" } else { "mesh" };
        browser.wait_for(name, &shown(view), LONG)?;
        let wide = browser.run("return document.documentElement.scrollWidth", json!([]))?;
        assert!(wide.as_u64() <= Some(window.width.into()), "{name}: {wide} pixels wide");
        browser.picture(name)?;
    }
    browser.see_with("none")
}

/// The scales, seen by the two common dichromacies.
fn colours(lab: &Lab) -> Result<()> {
    let host = lab.host("desk")?;
    let paper = Paper::serve(&host)?;
    let browser = Browser::start(&host)?;
    browser.open(&paper.address)?;
    let told = browser.run_async(
        "const { palette, channels } = await import('/palette.js');
         const scales = (theme) => { const { sequential, diverging } = palette(theme); return [sequential, diverging]; };
         return ['light', 'dark'].map((theme) => scales(theme).map((scale) => scale.map(channels)));",
    )?;
    for (theme, scales) in told.as_array().into_iter().flatten().enumerate() {
        for (eye, matrix) in EYES {
            let seen = |scale: &Value| -> Vec<[f64; 3]> {
                scale.as_array().into_iter().flatten().map(|colour| as_seen(colour, matrix)).collect()
            };
            let (sequential, diverging) = (seen(&scales[0]), seen(&scales[1]));
            assert!(sequential.len() > 30 && diverging.len() > 30);
            // Away from the paper all the way: darker on a light page, lighter on a dark one.
            for pair in sequential.windows(2) {
                let rise = luminance(pair[1]) - luminance(pair[0]);
                assert!(if theme == 0 { rise < 0.0 } else { rise > 0.0 }, "{eye}, theme {theme}: {pair:?}");
            }
            // Faster, as usual and slower are three colours: further apart than two inks that people tell apart.
            let (first, middle, last) = (diverging[0], diverging[diverging.len() / 2], diverging[diverging.len() - 1]);
            for (one, other) in [(first, middle), (middle, last), (first, last)] {
                assert!(distance(one, other) > 0.15, "{eye}, theme {theme}: {one:?} {other:?}");
            }
        }
    }
    assert_eq!(told.as_array().map(Vec::len), Some(2));
    check_manners(&browser, &paper.address)
}

/// Eyes, and what each makes of linear red, green and blue (Machado, Oliveira, Fernandes 2009, severity 1).
const EYES: [(&str, [[f64; 3]; 3]); 3] = [
    ("trichromat", [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]),
    ("protanope", [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]),
    ("deuteranope", [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]),
];

/// A colour of three channels up to 255, as linear light in an eye.
fn as_seen(colour: &Value, matrix: [[f64; 3]; 3]) -> [f64; 3] {
    let linear = [0, 1, 2].map(|channel| {
        let value = colour[channel].as_f64().unwrap_or_default() / 255.0;
        if value <= 0.04045 { value / 12.92 } else { ((value + 0.055) / 1.055).powf(2.4) }
    });
    matrix.map(|row| row.iter().zip(linear).map(|(factor, value)| factor * value).sum::<f64>().clamp(0.0, 1.0))
}

fn luminance([red, green, blue]: [f64; 3]) -> f64 {
    0.2126 * red + 0.7152 * green + 0.0722 * blue
}

/// How far apart two colours look, about: their distance in the cube of encoded channels, 0 to √3.
fn distance(one: [f64; 3], other: [f64; 3]) -> f64 {
    let encoded = |value: f64| value.powf(1.0 / 2.2);
    one.iter().zip(other).map(|(a, b)| (encoded(*a) - encoded(b)).powi(2)).sum::<f64>().sqrt()
}
