//! A guest's `/init` of a few instructions, so that tests need no compiler and no agent: it says [`GREETING`] on
//! the console and then either waits for ever or, when its command line has `test-exit`, powers off.
#![expect(
    unsafe_code,
    reason = "the program's instructions are assembled at compile time and read as bytes"
)]

pub(crate) const GREETING: &str = "the test init runs";

const BASE: u64 = 0x40_0000;
const HEADERS: u64 = 64 + 56;

// System call numbers: arch/x86/entry/syscalls/syscall_64.tbl. `test-exit` reaches init as an argument, the kernel
// not knowing it and it having no dot (Documentation/admin-guide/kernel-parameters.rst).
core::arch::global_asm!(
    r#"
    .pushsection .rodata.warren_test_init, "a", @progbits
    .globl warren_test_init
    .globl warren_test_init_end
    .code64
warren_test_init:
    movl $1, %eax                   # write(1, greeting, length)
    movl $1, %edi
    leaq 8f(%rip), %rsi
    movl $9f - 8f, %edx
    syscall
    cmpq $1, (%rsp)                 # argc
    ja 2f
1:
    movl $34, %eax                  # pause()
    syscall
    jmp 1b
2:
    movl $169, %eax                 # reboot(MAGIC1, MAGIC2, RESTART)
    movl $0xfee1dead, %edi
    movl $672274793, %esi
    movl $0x01234567, %edx
    syscall
    jmp 1b
8:
    .ascii "the test init runs\n"
9:
warren_test_init_end:
    .popsection
    "#,
    options(att_syntax)
);

unsafe extern "C" {
    static warren_test_init: u8;
    static warren_test_init_end: u8;
}

/// The program as a static ELF file (elf(5)).
pub(crate) fn elf() -> Vec<u8> {
    let start = &raw const warren_test_init;
    let length = (&raw const warren_test_init_end).addr() - start.addr();
    // SAFETY: both are labels of the one read-only section above, with initialised bytes between them.
    let code = unsafe { std::slice::from_raw_parts(start, length) };
    let size = HEADERS + code.len() as u64;
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    // ET_EXEC, EM_X86_64, version 1.
    file.extend([2, 0, 62, 0, 1, 0, 0, 0]);
    for long in [BASE + HEADERS, 64, 0] {
        file.extend(long.to_le_bytes());
    }
    file.extend([0; 4]);
    for half in [64_u16, 56, 1, 0, 0, 0] {
        file.extend(half.to_le_bytes());
    }
    // PT_LOAD, readable and executable.
    file.extend([1, 0, 0, 0, 5, 0, 0, 0]);
    for long in [0, BASE, BASE, size, size, 0x1000] {
        file.extend(long.to_le_bytes());
    }
    file.extend(code);
    file
}
