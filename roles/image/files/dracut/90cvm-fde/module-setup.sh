#!/bin/bash
# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# The boot agent of cvm.fde: with dracut's own modules where they exist, and without dracut's shell, its emergency
# prompt and its fallback to a tmpfs root.

_agent=/usr/lib/cvm-fde/agent.pyz

check() {
    [[ -e "${dracutsysrootdir-}$_agent" ]] || return 1
    require_binaries python3 dmsetup cryptsetup systemd-cryptenroll systemd-cryptsetup \
        "$systemdutildir"/systemd-veritysetup "$systemdutildir"/systemd-pcrextend || return 1
    # Only where it is asked for by name.
    return 255
}

depends() {
    local _module _found=""
    # Their names differ between the versions of dracut; one that is not there is part of another one.
    for _module in systemd systemd-initrd systemd-udevd systemd-journald systemd-tmpfiles systemd-modules-load \
        systemd-veritysetup udev-rules; do
        compgen -G "$dracutbasedir/modules.d/[0-9][0-9]$_module" > /dev/null && _found+=" $_module"
    done
    echo "$_found"
}

config() {
    # What libsystemd-shared opens by dlopen(), where this dracut follows such notes.
    add_dlopen_features+=" libsystemd-shared-*.so:cryptsetup,libcrypto,tpm,tpm2,blkid,mount,kmod "
}

# The strategy that the system was prepared for.
_strategy() {
    local _name=clone
    read -r _name 2> /dev/null < "${dracutsysrootdir-}/usr/lib/cvm-fde/strategy"
    echo "$_name"
}

# Named one by one: dracut's own choice of every driver, file system and cipher is five times as large, and the firmware
# hashes all of it at every boot.
installkernel() {
    # Disks of QEMU, of the clouds and of VMware; keyboards for those who recover at a screen; what holds the image.
    hostonly='' instmods dm-mod dm-verity sha256 ext4 loop '=drivers/char/tpm'
    hostonly='' instmods -s virtio_pci virtio_blk virtio_scsi nvme sd_mod ahci ata_piix hv_vmbus hv_storvsc pci-hyperv \
        xen-blkfront vmw_pvscsi virtio_console hyperv-keyboard atkbd i8042 efivarfs vfat nls_cp437 nls_ascii \
        nls_iso8859-1 crc32c sha256_ssse3 sha2_ce qemu_fw_cfg
    case "$(_strategy)" in
        ephemeral)
            hostonly='' instmods overlay
            return 0
            ;;
        overlay) hostonly='' instmods overlay btrfs ;;
        clone) hostonly='' instmods dm-clone ;;
    esac
    hostonly='' instmods dm-crypt dm-integrity aes xts hmac authenc essiv cbc \
        algif_skcipher algif_hash algif_aead af_alg
    # Without these the software versions are used; they exist on some architectures only.
    hostonly='' instmods -s aesni_intel aes_ce_blk aegis128 aegis128_aesni
}

install() {
    inst_multiple dmsetup cryptsetup systemd-cryptenroll udevadm modprobe mount umount systemctl \
        "$systemdutildir"/systemd-cryptsetup "$systemdutildir"/systemd-veritysetup "$systemdutildir"/systemd-pcrextend
    inst_multiple -o systemd-cryptsetup \
        "$systemdutildir"/systemd-tpm2-setup "$systemdutildir"/system-generators/systemd-tpm2-generator \
        "$tmpfilesdir"/20-systemd-stub.conf "$tmpfilesdir"/cryptsetup.conf \
        "$systemdutildir"/systemd-volatile-root "$systemdsystemunitdir"/systemd-volatile-root.service
    # Linux does not end a growth of ext4 by itself that a power cut ended: it loses what is written next.
    case $(_strategy) in
        overlay) inst_multiple mkfs.btrfs ;;
        clone | copy) inst_multiple fsck fsck.ext4 e2fsck ;;
    esac

    _install_measurement
    _install_libraries
    _install_python
    _install_units
    inst_rules 10-dm.rules 13-dm-disk.rules 55-dm.rules 60-persistent-storage-dm.rules 95-dm-notify.rules \
        60-tpm-udev.rules 60-tpm2-id.rules 90-tpm.rules
    inst_simple "$moddir"/cvm-fde.rules "$(_rules_path)"
    _install_dependencies
}

# What the shared objects need that were installed by now: dracut 106 (Debian 13) looks at the needs of programs alone.
_install_dependencies() {
    local -a _libraries
    mapfile -t _libraries < <(find "$initdir" -type f -name '*.so*' -exec ldd {} + 2> /dev/null \
        | sed -n 's/.*=> \(\/[^ ]*\) (.*/\1/p' | sort -u)
    inst_multiple "${_libraries[@]}"
}

# systemd's own measurements: boot phases, the separator, the socket by which other programs measure.
_install_measurement() {
    local _unit
    for _unit in tpm2.target systemd-pcrphase-initrd.service systemd-pcrosseparator.service systemd-pcrextend.socket \
        systemd-pcrextend@.service systemd-tpm2-setup-early.service systemd-pcrnvdone.service; do
        inst_multiple -o "$systemdsystemunitdir/$_unit" "$systemdsystemunitdir/$_unit.d/*.conf" \
            "$systemdsystemunitdir/initrd.target.wants/$_unit" "$systemdsystemunitdir/sysinit.target.wants/$_unit" \
            "$systemdsystemunitdir/sockets.target.wants/$_unit"
    done
    # The NV indexes of systemd's further measurements can only be started here.
    inst_multiple -o "/usr/lib/nvpcr/*.nvpcr"
}

_install_libraries() {
    # Opened at run time: by the TPM library, by libcryptsetup for the token, by systemd.
    inst_libdir_file "libtss2-tcti-device.so*" "libtss2-esys.so*" "libtss2-mu.so*" "libtss2-rc.so*" \
        "libcryptsetup.so.*" "cryptsetup/libcryptsetup-token-systemd-tpm2.so" "libcrypto.so.3" \
        "libblkid.so.*" "libkmod.so.*" "libmount.so.*" "ossl-modules/legacy.so"
}

_install_python() {
    local _source _target
    # Compiled modules are written into the tree by the agent itself; programs and shared objects bring libraries along.
    while IFS=$'\t' read -r _source _target; do
        inst "$_source" "$_target"
    done < <(python3 -I "$_agent" initrd "$initdir")
    [[ -e "$initdir/usr/lib/cvm-fde/agent/__main__.pyc" ]] || {
        dfatal "cvm-fde: the agent was not installed"
        exit 1
    }
    ln_r "$(readlink -f "$(command -v python3)")" /usr/bin/python3
}

_install_units() {
    local _unit _units=/etc/systemd/system
    inst_simple "$moddir/units/cvm-fde-boot.service" "$_units/cvm-fde-boot.service"
    for _unit in emergency.service rescue.service; do
        inst_simple "$moddir/units/emergency.service" "$_units/$_unit"
    done
    inst_simple "$moddir/sysroot.conf" "$_units/sysroot.mount.d/cvm-fde.conf"
    inst_simple "$moddir/device.conf" "$_units/dev-mapper-fde\\x2droot.device.d/cvm-fde.conf"
    inst_simple "$moddir/system.conf" /etc/systemd/system.conf.d/cvm-fde.conf
    mkdir -p "$initdir$_units/initrd-root-device.target.requires"
    ln_r "$_units/cvm-fde-boot.service" "$_units/initrd-root-device.target.requires/cvm-fde-boot.service"
    # Doors for whoever can add to the command line or pass credentials.
    rm -f "$initdir$systemdutildir"/system-generators/systemd-debug-generator \
        "$initdir$systemdsystemunitdir"/{debug-shell,breakpoint-*}.service
}

# After the rules that say what a device-mapper device is, before those that probe it.
_rules_path() {
    if [[ -e "${dracutsysrootdir-}$udevdir/rules.d/55-dm.rules" ]]; then
        echo "$udevdir/rules.d/56-cvm-fde.rules"
    else
        echo "$udevdir/rules.d/12-cvm-fde.rules"
    fi
}
