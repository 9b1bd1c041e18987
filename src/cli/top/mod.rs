//! `meshctl top`: the links live, the worst first.

mod board;
mod screen;

use std::io::{self, IsTerminal};
use std::time::Duration;

use clap::{Args, ValueEnum};
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyEventKind};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};

use super::context::Context;
use super::exit::{Exit, Failure};
use super::past::Past;
use crate::api::{Client, ClientError, Status};
use board::{Board, Wish};

/// `meshctl top`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  meshctl top\n  meshctl top --sort loss\n\n\
                        Keys: s state, r round trip, d change, l loss, j jitter, c cost of a query;\n\
                        up and down, enter for one link, esc back, ? help, q quits.\n\
                        Where there is no terminal: meshctl status --watch.")]
pub struct TopArgs {
    /// What the worst is at the start.
    #[arg(long, value_name = "WHAT", default_value = "state")]
    pub sort: Sort,
}

/// What orders links, the worst first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Sort {
    /// State, and name.
    #[default]
    State,
    /// Round trip.
    Rtt,
    /// How much longer the round trip is than usual.
    Delta,
    /// Loss.
    Loss,
    /// Jitter.
    Jitter,
    /// What a query costs that crosses the link and back.
    Cost,
}

/// How often the state is asked for and drawn.
const REFRESH: Duration = Duration::from_secs(1);
/// How long the reader of keys waits before it looks whether anybody still wants them.
const KEY_WAIT: Duration = Duration::from_millis(200);
/// Keys that wait to be looked at: more than anybody types between two drawings.
const KEYS: usize = 64;

/// Shows the links until somebody has seen enough.
pub async fn run(context: &Context, args: &TopArgs) -> Result<(), Failure> {
    if context.output.json || !io::stdout().is_terminal() || !io::stdin().is_terminal() {
        let advice = "use `meshctl status --watch`, or `meshctl --json status` in a program";
        return Err(Failure::new(
            Exit::Usage,
            format!("`meshctl top` draws on a terminal, and here is none; {advice}"),
        ));
    }
    let client = context.client()?;
    // Before anything is drawn: a daemon that does not answer is told where errors are told.
    let mut board = Board::new(client.status().await?, args.sort);
    let mut ends = Ends::new()?;
    let drawing = |error: io::Error| Failure::failed(format!("cannot draw on this terminal: {error}"));
    // It also sees to it that a panic gives the terminal back before it is told.
    let restore = Restore;
    let mut terminal = ratatui::try_init().map_err(drawing)?;
    let result = watch(&client, &mut board, &mut terminal, &mut ends).await;
    drop(restore);
    result.map_err(drawing)
}

/// Gives the terminal back as it was, however this ends.
struct Restore;

impl Drop for Restore {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

/// What ends it from outside.
struct Ends {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

impl Ends {
    fn new() -> Result<Self, Failure> {
        let catch = |kind| signal(kind).map_err(|error| Failure::failed(format!("cannot catch signals: {error}")));
        Ok(Ends {
            terminate: catch(SignalKind::terminate())?,
            interrupt: catch(SignalKind::interrupt())?,
            hang_up: catch(SignalKind::hangup())?,
        })
    }

    async fn any(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
            _ = self.hang_up.recv() => {}
        }
    }
}

/// What the daemon said.
enum News {
    Status(Box<Result<Status, ClientError>>),
    Past(String, Box<Past>),
}

async fn watch(client: &Client, board: &mut Board, terminal: &mut DefaultTerminal, ends: &mut Ends) -> io::Result<()> {
    let mut keys = keys();
    // Whatever the daemon takes its time for, keys are heard meanwhile.
    let (news, mut told) = mpsc::channel(2);
    let mut ticks = interval(REFRESH);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut asked = false;
    loop {
        terminal.draw(|frame| screen::draw(frame, board))?;
        tokio::select! {
            () = ends.any() => return Ok(()),
            event = keys.recv() => match event {
                Some(Event::Key(key)) if key.kind != KeyEventKind::Release => match board.press(key) {
                    Wish::Stay => {}
                    Wish::Quit => return Ok(()),
                    Wish::Past(peer) => {
                        let (client, news, now) = (client.clone(), news.clone(), board.status.now);
                        tokio::spawn(async move {
                            let past = Box::new(Past::load(&client, &peer, now).await);
                            let _ = news.send(News::Past(peer, past)).await;
                        });
                    }
                },
                Some(_) => {}
                // Nobody can say any more that he has seen enough.
                None => return Ok(()),
            },
            _ = ticks.tick(), if !asked => {
                asked = true;
                let (client, news) = (client.clone(), news.clone());
                tokio::spawn(async move { news.send(News::Status(Box::new(client.status().await))).await });
            },
            Some(said) = told.recv() => match said {
                News::Status(answer) => {
                    asked = false;
                    match *answer {
                        Ok(status) => board.refresh(status),
                        Err(error) => board.lose(error.to_string()),
                    }
                }
                News::Past(peer, past) => board.show_past(&peer, *past),
            },
        }
    }
}

/// Reads keys on a thread of its own, which ends soon after the receiver.
fn keys() -> mpsc::Receiver<Event> {
    let (sender, keys) = mpsc::channel(KEYS);
    std::thread::spawn(move || {
        while !sender.is_closed() {
            match event::poll(KEY_WAIT).and_then(|ready| if ready { event::read().map(Some) } else { Ok(None) }) {
                // What nobody looks at in time is dropped, as keys are that are held down.
                Ok(Some(event)) => drop(sender.try_send(event)),
                Ok(None) => {}
                Err(_) => return,
            }
        }
    });
    keys
}
