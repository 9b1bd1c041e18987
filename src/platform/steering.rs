//! Which queue of the device, and which of several sockets at one port, a packet comes to: small programs that the kernel
//! runs for each.
//!
//! # The device
//! A queue is one of some *lanes* of one of some *shards*: number `shard × lanes + lane`. The shard follows from the
//! destination alone ([`shard_of`]), so that all packets for one peer's address are moved by one thread; the lane from the
//! flow, so that a flow stays in order and a packet of another waits at most for one read of each lane before it.
//!
//! ```text
//!  destination's last byte modulo shards ──▶ shard
//!  TCP, UDP: ports, scattered             ──▶ lane 1, 2, …
//!  everything else, and all fragments     ──▶ lane 0
//! ```
//!
//! ICMP thus never waits behind a stream. All fragments take lane 0, because only the first of a datagram tells its ports;
//! a flow that sends fragments and whole datagrams in turns may see the one overtake the other, as behind any network card
//! with several queues.
//!
//! # The sockets
//! A data message goes to the shard that byte 5 says, modulo their number, all others to the first. That byte belongs to the
//! receiver index, which the receiver has chosen: where it numbers a peer's sessions by the shard of the peer's address, one
//! thread serves the peer in both directions.

use nix::errno::Errno;
use std::ffi::CStr;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Most shards: beyond it, a machine's other bounds (memory, its network card's queues) come first.
pub const MOST_SHARDS: u8 = 16;

/// Returns the shard that moves packets for `address`, of so many (at least one).
pub fn shard_of(address: IpAddr, shards: u8) -> u8 {
    let last = match address {
        IpAddr::V4(v4) => v4.octets()[3],
        IpAddr::V6(v6) => v6.octets()[15],
    };
    last % shards.max(1)
}

/// The program that chooses the device's queue, in the kernel.
#[derive(Debug)]
pub struct Steering {
    program: OwnedFd,
    shards: u8,
    lanes: u8,
}

impl Steering {
    /// Gives the kernel a program for so many shards (1 to [`MOST_SHARDS`]) of so many lanes (2 at least).
    ///
    /// # Errors
    /// What the kernel says: it takes `CAP_BPF`, or `CAP_SYS_ADMIN` before Linux 5.8; a container may refuse it whatever
    /// one has.
    pub fn load(shards: u8, lanes: u8) -> io::Result<Steering> {
        if !(1..=MOST_SHARDS).contains(&shards) || !(2..=16).contains(&lanes) {
            return Err(io::Error::from(Errno::EINVAL));
        }
        let instructions = program(shards, lanes);
        let license: &CStr = c"MIT";
        let attributes = LoadAttributes {
            program_type: SOCKET_FILTER,
            count: instructions.len() as u32,
            instructions: instructions.as_ptr() as u64,
            license: license.as_ptr() as u64,
            ..LoadAttributes::default()
        };
        // SAFETY: the attributes say their own size and point at instructions and a text that outlive the call; the kernel
        // only reads them.
        let result = unsafe {
            libc::syscall(libc::SYS_bpf, PROG_LOAD, &raw const attributes, size_of::<LoadAttributes>() as libc::c_uint)
        };
        let descriptor = Errno::result(result)? as libc::c_int;
        // SAFETY: a non-negative result is a descriptor nobody else owns.
        let program = unsafe { OwnedFd::from_raw_fd(descriptor) };
        Ok(Steering { program, shards, lanes })
    }

    /// How many shards it tells apart.
    pub fn shards(&self) -> u8 {
        self.shards
    }

    /// How many lanes each shard has.
    pub fn lanes(&self) -> u8 {
        self.lanes
    }

    /// How many queues it chooses among.
    pub fn queues(&self) -> usize {
        usize::from(self.shards) * usize::from(self.lanes)
    }
}

impl AsFd for Steering {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.program.as_fd()
    }
}

/// Has the kernel give each datagram to the socket of its shard: `socket` is one of so many at one port, numbered in the order
/// in which they were bound. Takes no privilege.
pub(super) fn steer_datagrams(socket: BorrowedFd<'_>, shards: u8) -> io::Result<()> {
    let statement = |code: u32, jt: u8, jf: u8, k: u32| libc::sock_filter { code: code as u16, jt, jf, k };
    let mut program = [
        // A = byte 0; no data message: socket 0.
        statement(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, 0, 0, 0),
        statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 3, 4),
        // A = the number's low byte modulo shards.
        statement(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, 0, 0, 5),
        statement(libc::BPF_ALU | libc::BPF_MOD | libc::BPF_K, 0, 0, u32::from(shards.max(1))),
        statement(libc::BPF_RET | libc::BPF_A, 0, 0, 0),
        statement(libc::BPF_RET | libc::BPF_K, 0, 0, 0),
    ];
    let filter = libc::sock_fprog { len: program.len() as libc::c_ushort, filter: program.as_mut_ptr() };
    // SAFETY: the pointer and length describe `filter`, which points at `program`; both outlive the call, and the kernel copies
    // what it keeps.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_REUSEPORT_CBPF,
            (&raw const filter).cast(),
            size_of::<libc::sock_fprog>() as libc::socklen_t,
        )
    };
    Errno::result(result).map(drop).map_err(io::Error::from)
}

/// `BPF_PROG_LOAD` and `BPF_PROG_TYPE_SOCKET_FILTER` (linux/bpf.h).
const PROG_LOAD: libc::c_int = 5;
const SOCKET_FILTER: u32 = 1;

/// The first fields of `union bpf_attr` for `BPF_PROG_LOAD`, as far as Linux 4.15 knew them; the kernel takes what is
/// missing for zero.
#[repr(C)]
#[derive(Default)]
struct LoadAttributes {
    program_type: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
}

/// `struct bpf_insn`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Instruction {
    code: u8,
    /// Destination in the low, source in the high four bits (the high four first on big-endian machines).
    registers: u8,
    offset: i16,
    value: i32,
}

/// Codes of the instructions used (linux/bpf.h): 64-bit arithmetic with a constant or a register, 32-bit multiplication,
/// loads from the packet, jumps.
const MOVE: u8 = 0xb7;
const MOVE_REGISTER: u8 = 0xbf;
const ADD: u8 = 0x07;
const ADD_REGISTER: u8 = 0x0f;
const AND: u8 = 0x57;
const SHIFT_LEFT: u8 = 0x67;
const SHIFT_RIGHT: u8 = 0x77;
const MULTIPLY: u8 = 0x27;
const MULTIPLY_WORD: u8 = 0x24;
const MODULO: u8 = 0x97;
const LOAD_BYTE: u8 = 0x30;
const LOAD_HALF: u8 = 0x28;
const LOAD_WORD_BEHIND: u8 = 0x40;
const JUMP: u8 = 0x05;
const JUMP_IF_EQUAL: u8 = 0x15;
const JUMP_IF_NOT: u8 = 0x55;
const EXIT: u8 = 0x95;

/// What loads from the packet give: `RESULT`; what they keep: these four, of which `CONTEXT` must hold the packet.
const RESULT: u8 = 0;
const ARGUMENT: u8 = 1;
const CONTEXT: u8 = 6;
const LAST: u8 = 7;
const PROTOCOL: u8 = 8;
const TRANSPORT: u8 = 9;

/// Knuth's multiplier, 2^32 divided by the golden ratio: neighbouring ports fall far apart.
const SCATTER: u32 = 0x9e37_79b1;

/// The program as described at the top of this file. A load beyond the packet's end ends it with queue 0.
fn program(shards: u8, lanes: u8) -> Vec<Instruction> {
    let on = |code, target: u8, value: i32| Instruction { code, registers: pair(target, 0), offset: 0, value };
    let from =
        |code, target: u8, source: u8| Instruction { code, registers: pair(target, source), offset: 0, value: 0 };
    let jump =
        |code, register: u8, value: i32, offset: i16| Instruction { code, registers: pair(register, 0), offset, value };
    let load = |code, at: i32| Instruction { code, registers: 0, offset: 0, value: at };
    vec![
        from(MOVE_REGISTER, CONTEXT, ARGUMENT),
        load(LOAD_BYTE, 0),
        from(MOVE_REGISTER, TRANSPORT, RESULT),
        on(SHIFT_RIGHT, RESULT, 4),
        jump(JUMP_IF_EQUAL, RESULT, 6, 10),
        // IPv4: the header's length, the destination's end, the protocol; a fragment has no ports.
        on(AND, TRANSPORT, 0x0f),
        on(SHIFT_LEFT, TRANSPORT, 2),
        load(LOAD_BYTE, 19),
        from(MOVE_REGISTER, LAST, RESULT),
        load(LOAD_BYTE, 9),
        from(MOVE_REGISTER, PROTOCOL, RESULT),
        load(LOAD_HALF, 6),
        on(AND, RESULT, 0x3fff),
        jump(JUMP_IF_NOT, RESULT, 0, 13),
        jump(JUMP, 0, 0, 5),
        // IPv6; what has extension headers, fragments among them, is neither TCP nor UDP here.
        on(MOVE, TRANSPORT, 40),
        load(LOAD_BYTE, 39),
        from(MOVE_REGISTER, LAST, RESULT),
        load(LOAD_BYTE, 6),
        from(MOVE_REGISTER, PROTOCOL, RESULT),
        jump(JUMP_IF_EQUAL, PROTOCOL, 6, 1),
        jump(JUMP_IF_NOT, PROTOCOL, 17, 5),
        Instruction { code: LOAD_WORD_BEHIND, registers: pair(0, TRANSPORT), offset: 0, value: 0 },
        on(MULTIPLY_WORD, RESULT, SCATTER as i32),
        on(SHIFT_RIGHT, RESULT, 16),
        on(MODULO, RESULT, i32::from(lanes) - 1),
        jump(JUMP, 0, 0, 1),
        on(MOVE, RESULT, -1),
        on(ADD, RESULT, 1),
        on(MODULO, LAST, i32::from(shards)),
        on(MULTIPLY, LAST, i32::from(lanes)),
        from(ADD_REGISTER, RESULT, LAST),
        Instruction { code: EXIT, registers: 0, offset: 0, value: 0 },
    ]
}

/// Two registers' numbers in one byte, as C lays out two fields of four bits.
fn pair(target: u8, source: u8) -> u8 {
    if cfg!(target_endian = "little") { target | source << 4 } else { target << 4 | source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::platform::host_state::{Device, HostState};
    use crate::platform::netlink::Host;
    use crate::platform::test_namespace::{in_namespace, runtime};
    use crate::platform::tun::{Tun, TunError};
    use crate::platform::udp::{UdpOptions, UdpSocket};
    use crate::platform::udp_batch::{BATCH, ReceiveBatch, SendBatch, Way};
    use crate::platform::wake::Wake;
    use std::collections::BTreeSet;
    use std::net::{SocketAddr, UdpSocket as PlainSocket};

    const VNET: usize = 10;

    /// What the top of this file says, in other words than the program's.
    fn queue_of(packet: &[u8], shards: u8, lanes: u8) -> usize {
        let (last, protocol, transport, whole) = match packet[0] >> 4 {
            4 => (packet[19], packet[9], usize::from(packet[0] & 15) * 4, packet[6] & 0x3f == 0 && packet[7] == 0),
            _ => (packet[39], packet[6], 40, true),
        };
        let lane = if whole && [6, 17].contains(&protocol) {
            let ports = u32::from_be_bytes(packet[transport..transport + 4].try_into().unwrap());
            1 + (ports.wrapping_mul(SCATTER) >> 16) % (u32::from(lanes) - 1)
        } else {
            0
        };
        usize::from(last % shards) * usize::from(lanes) + lane as usize
    }

    /// The queue that has something, which is read.
    fn next(queues: &[Tun]) -> (usize, Vec<u8>) {
        let mut buffer = vec![0; 70_000];
        loop {
            for (number, queue) in queues.iter().enumerate() {
                match queue.read(&mut buffer) {
                    Ok(length) => return (number, buffer[VNET..length].to_vec()),
                    Err(TunError::WouldBlock) => {}
                    Err(error) => panic!("queue {number}: {error}"),
                }
            }
            std::thread::yield_now();
        }
    }

    #[test]
    fn the_kernel_sorts_packets_as_described() {
        in_namespace("the_kernel_sorts_packets_as_described", || {
            for (shards, lanes) in [(1, 8), (2, 3), (4, 2), (3, 4)] {
                let steering = match Steering::load(shards, lanes) {
                    Ok(steering) => steering,
                    Err(error) => return eprintln!("NOT RUN: the kernel takes no programs here: {error}"),
                };
                assert_eq!(steering.queues(), usize::from(shards) * usize::from(lanes));
                let queues = Tun::create_queues("mesh%d", &steering).unwrap();
                drop(steering);
                let device = Device {
                    name: queues[0].name().into(),
                    mtu: 1420,
                    addresses: ["10.77.0.1".parse().unwrap(), "fd77::1".parse().unwrap()].into(),
                    routes: ["10.77.0.0/16".parse().unwrap(), "fd77::/64".parse().unwrap()].into(),
                    sized: Default::default(),
                };
                let state = HostState { device: Some(device), covers: Default::default() };
                runtime().block_on(async {
                    let applied = Host::connect().unwrap().apply(&state).await.unwrap();
                    assert!(applied.failed.is_empty(), "{applied:?}");
                });
                let mut used = BTreeSet::new();
                let expect = |used: &mut BTreeSet<usize>| {
                    let (number, packet) = next(&queues);
                    assert_eq!(number, queue_of(&packet, shards, lanes), "{shards} × {lanes}: {packet:02x?}");
                    used.insert(number);
                };
                for own in ["10.77.0.1:0", "[fd77::1]:0"] {
                    for target in 2..8u8 {
                        for port in 1..20u16 {
                            let socket = PlainSocket::bind(own).unwrap();
                            let to: SocketAddr = match socket.local_addr().unwrap().is_ipv4() {
                                true => ([10, 77, 1, target], port).into(),
                                false => {
                                    (std::net::Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, target.into()), port).into()
                                }
                            };
                            socket.send_to(&[1; 40], to).unwrap();
                            expect(&mut used);
                        }
                    }
                }
                assert_eq!(used.len(), usize::from(shards) * (usize::from(lanes) - 1), "every lane for ports is used");
                // Fragments, of which the first alone tells its ports, all go one way.
                let socket = PlainSocket::bind("10.77.0.1:0").unwrap();
                socket.send_to(&[1; 4_000], "10.77.1.2:7").unwrap();
                (0..3).for_each(|_| expect(&mut used));
                assert_eq!(used.len(), usize::from(shards) * (usize::from(lanes) - 1) + 1);
            }
        });
    }

    #[test]
    fn programs_of_no_sense_are_refused() {
        for (shards, lanes) in [(0, 8), (17, 8), (1, 1), (1, 17)] {
            assert_eq!(Steering::load(shards, lanes).unwrap_err().raw_os_error(), Some(libc::EINVAL));
        }
    }

    #[test]
    fn the_two_addresses_of_a_node_have_one_shard() {
        let v4 = std::net::Ipv4Addr::new(10, 77, 3, 9);
        let v6 = std::net::Ipv6Addr::new(0xfd77, 1, 2, 0, 0, 0, 0x0a4d, 0x0309);
        for shards in 1..=MOST_SHARDS {
            assert_eq!(shard_of(v4.into(), shards), shard_of(v6.into(), shards));
            assert!(shard_of(v4.into(), shards) < shards);
        }
        assert_eq!(shard_of(v4.into(), 0), 0);
    }

    #[test]
    fn data_messages_reach_the_socket_of_their_shard_whole_runs_too() {
        in_namespace("data_messages_reach_the_socket_of_their_shard_whole_runs_too", || {
            for shards in [2, 3, 4] {
                let any = ([127, 0, 0, 1], 0).into();
                let (sockets, steered) = UdpSocket::bind_shards(any, UdpOptions::default(), shards).unwrap();
                steered.unwrap();
                let sender = UdpSocket::bind(any, UdpOptions::default()).unwrap();
                let way = Way { to: sockets[0].local(), source: None, tos: 0 };
                for byte in 0..20u8 {
                    for (kind, length, expected) in [(4, 1_000, byte % shards), (1, 148, 0), (0x10, 200, 0)] {
                        let mut message = vec![byte; length];
                        message[0] = kind;
                        let mut batch = SendBatch::new();
                        for _ in 0..3 {
                            batch.slot(length).unwrap()[..length].copy_from_slice(&message);
                            assert!(batch.commit(length, way));
                        }
                        assert_eq!(sender.send(&mut batch, |to, error| panic!("{to}: {error}")), 3);
                        let socket = &sockets[usize::from(expected)];
                        let (mut received, mut count) = (ReceiveBatch::new(BATCH, 65_536), 0);
                        while count < 3 {
                            Wake::new().unwrap().wait_readable(socket.as_fd(), None).unwrap();
                            for index in 0..socket.receive(&mut received, BATCH).unwrap() {
                                assert!(received.bytes(index).chunks(length).all(|bytes| bytes == message));
                                count += received.bytes(index).len() / length;
                            }
                        }
                        assert_eq!(count, 3);
                    }
                }
            }
        });
    }
}
