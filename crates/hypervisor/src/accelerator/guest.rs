//! The throw-away guest: a kernel of a few dozen instructions that an ordinary Linux kernel cannot do without, and
//! that a `/dev/kvm` without hardware virtualization behind it fails on.
//!
//! It is an ELF file with a PVH entry (Xen, docs/misc/pvh.pandoc: flat 32-bit protected mode, paging off), so it
//! takes the same way into the machine as a guest kernel. It sets up paging and long mode, executes CMPXCHG16B,
//! RDTSC, XSAVE and XRSTOR, and a BMI2 instruction (the last two where CPUID has them), checks their results and
//! writes its verdict to QEMU's `isa-debug-exit` port. Any exception is a triple fault, there being no IDT.
#![expect(
    unsafe_code,
    reason = "the guest's instructions are assembled at compile time and read as bytes"
)]

/// Where the guest is loaded: the start of memory above the PC's hole.
const BASE: u64 = 0x10_0000;
/// Where the parts are, from `BASE` on. The assembly has the sums of these as numbers.
const LONG_MODE_OFFSET: usize = 0x400;
const GDT_OFFSET: usize = 0x800;
const GDT_POINTER_OFFSET: usize = 0x840;
const IMAGE_LENGTH: usize = 0x1000;

/// The port of `isa-debug-exit`; in the assembly too.
pub(super) const EXIT_PORT: u16 = 0xf4;
/// What the guest writes when everything worked; in the assembly too.
const PASSED: i32 = 0x2a;
/// What QEMU exits with then (hw/misc/debugexit.c: `(value << 1) | 1`).
pub(super) const PASSED_EXIT_CODE: i32 = (PASSED << 1) | 1;

core::arch::global_asm!(
    r#"
    .pushsection .rodata.warren_probe, "a", @progbits
    .globl warren_probe_32
    .globl warren_probe_32_end
    .globl warren_probe_64
    .globl warren_probe_64_end

    .code32
warren_probe_32:
    cli
    # Page tables at 0x110000 in memory that is zero: the first 2 MiB, mapped to themselves by one large page.
    movl $0x111003, 0x110000        # PML4[0] -> PDPT, present and writable
    movl $0x112003, 0x111000        # PDPT[0] -> PD
    movl $0x000083, 0x112000        # PD[0] = 0, present, writable, large
    movl $0x110000, %eax
    movl %eax, %cr3
    # CR4: PAE, OSFXSR, OSXMMEXCPT; OSXSAVE where CPUID.1:ECX[26] has XSAVE.
    movl $1, %eax
    xorl %ecx, %ecx
    cpuid
    movl $0x620, %eax
    btl $26, %ecx
    jnc 1f
    orl $0x40000, %eax
1:
    movl %eax, %cr4
    # EFER.LME, then CR0.PG with MP and NE and without EM: long mode.
    movl $0xc0000080, %ecx
    rdmsr
    orl $0x100, %eax
    wrmsr
    movl %cr0, %eax
    andl $0xfffffffb, %eax
    orl $0x80000022, %eax
    movl %eax, %cr0
    lgdtl 0x100840                  # BASE + GDT_POINTER_OFFSET
    ljmpl $8, $0x100400             # BASE + LONG_MODE_OFFSET
warren_probe_32_end:

    .code64
warren_probe_64:
    # CMPXCHG16B: memory holds 0:0, so it must become 0x22:0x11.
    xorl %eax, %eax
    xorl %edx, %edx
    movl $0x11, %ebx
    movl $0x22, %ecx
    movl $0x113000, %edi
    lock cmpxchg16b (%rdi)
    jnz 9f
    cmpq $0x11, (%rdi)
    jne 9f
    cmpq $0x22, 8(%rdi)
    jne 9f

    # RDTSC must not fault and not be 0.
    rdtsc
    orl %edx, %eax
    jz 9f

    # XSAVE and XRSTOR of x87 and SSE state: XMM0 must come back.
    movl $1, %eax
    xorl %ecx, %ecx
    cpuid
    btl $26, %ecx
    jnc 2f
    xorl %ecx, %ecx
    xorl %edx, %edx
    movl $3, %eax
    xsetbv
    movl $0x5a5a5a5a, %eax
    movd %eax, %xmm0
    movl $0x114000, %edi
    movl $3, %eax
    xorl %edx, %edx
    xsave64 (%rdi)
    pxor %xmm0, %xmm0
    movl $3, %eax
    xorl %edx, %edx
    xrstor64 (%rdi)
    movd %xmm0, %eax
    cmpl $0x5a5a5a5a, %eax
    jne 9f
2:
    # BMI2 (CPUID.7.0:EBX[8]): PDEP spreads 0b101 over the set bits of 0x1110, SHLX shifts without flags.
    xorl %eax, %eax
    cpuid
    cmpl $7, %eax
    jb 3f
    movl $7, %eax
    xorl %ecx, %ecx
    cpuid
    btl $8, %ebx
    jnc 3f
    movl $5, %eax
    movl $0x1110, %ecx
    pdepq %rcx, %rax, %rax
    cmpq $0x1010, %rax
    jne 9f
    movl $4, %ecx
    shlxq %rcx, %rax, %rax
    cmpq $0x10100, %rax
    jne 9f
3:
    movl $0x2a, %eax                # PASSED
    outb %al, $0xf4                 # EXIT_PORT
    jmp 10f
9:
    movl $1, %eax
    outb %al, $0xf4
10:
    hlt
    jmp 10b
warren_probe_64_end:
    .popsection
    "#,
    options(att_syntax)
);

unsafe extern "C" {
    static warren_probe_32: u8;
    static warren_probe_32_end: u8;
    static warren_probe_64: u8;
    static warren_probe_64_end: u8;
}

fn between(start: *const u8, end: *const u8) -> &'static [u8] {
    let length = end.addr() - start.addr();
    // SAFETY: both are labels of the one read-only section above, `end` after `start`, with initialised bytes
    // between them that live as long as the program.
    unsafe { std::slice::from_raw_parts(start, length) }
}

/// What is loaded at `BASE`.
fn image() -> Vec<u8> {
    let code = between(&raw const warren_probe_32, &raw const warren_probe_32_end);
    let long_mode = between(&raw const warren_probe_64, &raw const warren_probe_64_end);
    let mut image = vec![0; IMAGE_LENGTH];
    let mut place = |offset: usize, bytes: &[u8]| {
        image[offset..offset + bytes.len()].copy_from_slice(bytes);
    };
    place(0, code);
    place(LONG_MODE_OFFSET, long_mode);
    // Nothing; then 64-bit code: present, ring 0, executable, readable, accessed, long (Intel SDM 3A, 3.4.5).
    place(GDT_OFFSET + 8, &0x00af_9b00_0000_ffff_u64.to_le_bytes());
    place(GDT_POINTER_OFFSET, &15_u16.to_le_bytes());
    let gdt = u32::try_from(BASE).expect("BASE is 1 MiB") + GDT_OFFSET as u32;
    place(GDT_POINTER_OFFSET + 2, &gdt.to_le_bytes());
    image
}

/// The guest as an ELF file (elf(5)): a header, two program headers, the note with the entry, the image.
pub(super) fn elf() -> Vec<u8> {
    const HEADER: u64 = 64;
    const PROGRAM_HEADER: u64 = 56;
    const NOTE: u64 = HEADER + 2 * PROGRAM_HEADER;
    const NOTE_LENGTH: u64 = 12 + 4 + 8;
    const IMAGE: u64 = 0x1000;
    let mut file = Vec::new();
    let halves = |file: &mut Vec<u8>, values: &[u16]| {
        values.iter().for_each(|v| file.extend(v.to_le_bytes()));
    };
    let words = |file: &mut Vec<u8>, values: &[u32]| {
        values.iter().for_each(|v| file.extend(v.to_le_bytes()));
    };
    let longs = |file: &mut Vec<u8>, values: &[u64]| {
        values.iter().for_each(|v| file.extend(v.to_le_bytes()));
    };
    // ELF64, little-endian, version 1.
    file.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    halves(&mut file, &[2, 62]); // ET_EXEC, EM_X86_64
    words(&mut file, &[1]);
    longs(&mut file, &[BASE, HEADER, 0]); // entry, program headers, no sections
    words(&mut file, &[0]);
    halves(&mut file, &[64, 56, 2, 0, 0, 0]);
    // PT_LOAD, readable, writable and executable.
    words(&mut file, &[1, 7]);
    let length = IMAGE_LENGTH as u64;
    longs(&mut file, &[IMAGE, BASE, BASE, length, length, 0x1000]);
    // PT_NOTE.
    words(&mut file, &[4, 4]);
    longs(&mut file, &[NOTE, 0, 0, NOTE_LENGTH, NOTE_LENGTH, 4]);
    // XEN_ELFNOTE_PHYS32_ENTRY is 18 (xen/include/public/elfnote.h); QEMU reads eight bytes of it.
    words(&mut file, &[4, 8, 18]);
    file.extend(b"Xen\0");
    longs(&mut file, &[BASE]);
    file.resize(IMAGE as usize, 0);
    file.extend(image());
    file
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_fit_their_places() {
        let code = between(&raw const warren_probe_32, &raw const warren_probe_32_end);
        let long_mode = between(&raw const warren_probe_64, &raw const warren_probe_64_end);
        assert!(!code.is_empty() && code.len() <= LONG_MODE_OFFSET);
        assert!(!long_mode.is_empty() && long_mode.len() <= GDT_OFFSET - LONG_MODE_OFFSET);
        assert_eq!(BASE + LONG_MODE_OFFSET as u64, 0x10_0400);
        assert_eq!(BASE + GDT_POINTER_OFFSET as u64, 0x10_0840);
        assert_eq!(elf().len(), 0x2000);
    }
}
