//! The kernel that Firecracker boots, taken out of the bzImage that Debian ships. Pure: bytes in, bytes out.
//!
//! A bzImage carries the ELF packed, and a program that unpacks it at boot. Debian's cloud kernel is packed by LZ4 in its
//! legacy framing: a magic number, then blocks of up to 8 MiB, each after its packed length; the kernel's build adds the
//! unpacked length at the end.

/// Why no kernel can be taken out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KernelError {
    /// It is something else.
    #[error("it is no bzImage")]
    NoBzImage,
    /// It ends too early.
    #[error("it was cut off: {what} reaches beyond its end")]
    CutOff {
        /// What was looked for.
        what: &'static str,
    },
    /// It is packed by something else.
    #[error("its kernel is packed in a way that is not known here: it begins with {magic:02x?}")]
    Packing {
        /// The first bytes of what is packed.
        magic: [u8; 4],
    },
    /// A block cannot be unpacked.
    #[error("block {number} of its packed kernel is damaged: {why}")]
    Block {
        /// Which one, from 0.
        number: usize,
        /// What the unpacker says.
        why: String,
    },
    /// The length is another one than was written down when it was packed.
    #[error("it unpacks to {is} bytes instead of {should}")]
    Length {
        /// What came out.
        is: usize,
        /// What was written down.
        should: u32,
    },
    /// What was packed is no ELF file.
    #[error("what it unpacks to is no ELF file")]
    NoElf,
}

const LEGACY: [u8; 4] = [0x02, 0x21, 0x4c, 0x18];
/// What one block unpacks to at most.
const BLOCK: usize = 8 << 20;
/// No kernel is larger; a damaged length must not take all memory.
const LARGEST: u32 = 512 << 20;

/// The ELF in a bzImage.
///
/// # Errors
/// [`KernelError`] says what is wrong with it.
pub fn vmlinux(image: &[u8]) -> Result<Vec<u8>, KernelError> {
    // Offsets of the x86 boot protocol: the signature, the size of the real-mode part, where the payload lies after it.
    if image.get(0x202..0x206) != Some(b"HdrS") {
        return Err(KernelError::NoBzImage);
    }
    let header = KernelError::CutOff { what: "its header" };
    let sectors = match image.get(0x1f1).ok_or(header.clone())? {
        0 => 4,
        &sectors => usize::from(sectors),
    };
    let offset = number(image, 0x248).ok_or(header.clone())? as usize;
    let length = number(image, 0x24c).ok_or(header)? as usize;
    let start = (sectors + 1) * 512 + offset;
    let packed = image.get(start..start + length).ok_or(KernelError::CutOff { what: "its kernel" })?;
    let elf = unpack(packed)?;
    match elf.starts_with(b"\x7fELF") {
        true => Ok(elf),
        false => Err(KernelError::NoElf),
    }
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// Unpacks LZ4 in legacy framing with the unpacked length behind it.
fn unpack(packed: &[u8]) -> Result<Vec<u8>, KernelError> {
    let mut rest = match packed.split_first_chunk() {
        Some((&LEGACY, rest)) => rest,
        Some((&magic, _)) => return Err(KernelError::Packing { magic }),
        None => return Err(KernelError::CutOff { what: "its kernel" }),
    };
    let should = rest.len().checked_sub(4).and_then(|at| number(rest, at));
    let should = should.ok_or(KernelError::CutOff { what: "its unpacked length" })?;
    let mut unpacked = Vec::with_capacity(should.min(LARGEST) as usize);
    for block in 0.. {
        // The unpacked length is the last that is there.
        if rest.len() <= 4 {
            break;
        }
        let size = number(rest, 0).unwrap_or_default() as usize;
        let bytes = rest.get(4..4 + size).ok_or(KernelError::CutOff { what: "a block of its kernel" })?;
        let damaged = |error: lz4_flex::block::DecompressError| KernelError::Block {
            number: block,
            why: error.to_string(),
        };
        let start = unpacked.len();
        unpacked.resize(start + BLOCK, 0);
        let length = lz4_flex::block::decompress_into(bytes, &mut unpacked[start..]).map_err(damaged)?;
        unpacked.truncate(start + length);
        if unpacked.len() > LARGEST as usize {
            return Err(KernelError::Length { is: unpacked.len(), should });
        }
        rest = &rest[4 + size..];
    }
    match unpacked.len() == should as usize {
        true => Ok(unpacked),
        false => Err(KernelError::Length { is: unpacked.len(), should }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A block of literals only: LZ4 needs no packer for that.
    fn block(bytes: &[u8]) -> Vec<u8> {
        let mut block = vec![0xf0];
        let mut left = bytes.len() - 15;
        while left >= 255 {
            block.push(255);
            left -= 255;
        }
        block.push(left as u8);
        block.extend(bytes);
        block
    }

    fn pack(parts: &[&[u8]]) -> Vec<u8> {
        let mut packed = LEGACY.to_vec();
        let mut length = 0;
        for part in parts {
            let block = block(part);
            packed.extend((block.len() as u32).to_le_bytes());
            packed.extend(block);
            length += part.len() as u32;
        }
        packed.extend(length.to_le_bytes());
        packed
    }

    fn bz_image(packed: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 1024];
        image[0x1f1] = 1;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x248..0x24c].copy_from_slice(&8u32.to_le_bytes());
        image[0x24c..0x250].copy_from_slice(&(packed.len() as u32).to_le_bytes());
        image.extend([0; 8]);
        image.extend(packed);
        image.extend([0; 100]);
        image
    }

    #[test]
    fn the_elf_comes_out_of_all_its_blocks() {
        let (first, second) = ([b"\x7fELF".as_slice(), &[1; 700]].concat(), [2; 300]);
        let elf = vmlinux(&bz_image(&pack(&[&first, &second]))).unwrap();
        assert_eq!(elf, [first.as_slice(), &second].concat());
    }

    #[test]
    fn what_is_no_kernel_is_said_to_be_none() {
        let good = bz_image(&pack(&[b"\x7fELF and so on and on"]));
        assert_eq!(vmlinux(b"\x7fELF"), Err(KernelError::NoBzImage));
        assert_eq!(vmlinux(&good[..1040]), Err(KernelError::CutOff { what: "its kernel" }));
        assert_eq!(
            vmlinux(&bz_image(b"\x1f\x8b\x08\x00 gzip")),
            Err(KernelError::Packing { magic: [0x1f, 0x8b, 8, 0] })
        );
        assert_eq!(vmlinux(&bz_image(&pack(&[&[7; 40]]))), Err(KernelError::NoElf));
        let mut wrong = pack(&[b"\x7fELF and so on and on"]);
        let last = wrong.len() - 4;
        wrong[last] += 1;
        assert_eq!(vmlinux(&bz_image(&wrong)), Err(KernelError::Length { is: 21, should: 22 }));
        let mut wrong = pack(&[b"\x7fELF and so on and on"]);
        // A match that reaches before the beginning.
        wrong[8] = 0x0f;
        assert!(matches!(vmlinux(&bz_image(&wrong)), Err(KernelError::Block { number: 0, .. })));
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_it_panic(mut image: Vec<u8>, packed: Vec<u8>) {
            let _ = vmlinux(&image);
            image = bz_image(&[LEGACY.as_slice(), &packed].concat());
            let _ = vmlinux(&image);
        }
    }
}
