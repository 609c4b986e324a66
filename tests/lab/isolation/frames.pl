# What root in a guest can put on its wire. Each frame has its name in it, for who listens.
#   send NAME[*COUNT],…  OWN_MAC OWN_IP GATEWAY_MAC GATEWAY_IP MAC IP   frames towards somebody
#   hear SECONDS                                                  names of what arrives, until one is called "end"
use strict;
use Socket;

open(my $index, '<', '/sys/class/net/eth0/ifindex') or die "no eth0";
my $wire;
socket($wire, 17, SOCK_RAW, unpack('S', pack('n', 3))) or die "socket: $!";
my $eth0 = pack('S n i S C C a8', 17, 3, 0 + <$index>, 0, 0, 0, '');
bind($wire, $eth0) or die "bind: $!";

sub mac { pack('H12', join('', split(/:/, $_[0]))) }
sub sum {
    my $total = 0;
    $total += $_ for unpack('n*', $_[0] . "\0" x (length($_[0]) % 2));
    $total = ($total & 0xffff) + ($total >> 16) while $total >> 16;
    return ~$total & 0xffff;
}
sub ip4 {
    my ($from, $to, $protocol, $body) = @_;
    my $head = sub { pack('C C n n n C C n a4 a4', 0x45, 0, 20 + length $body, 1, 0, 64, $protocol, $_[0],
        inet_aton($from), inet_aton($to)) };
    return $head->(sum($head->(0))) . $body;
}
sub udp { my ($from, $to, $text) = @_; pack('n n n n', $from, $to, 8 + length $text, 0) . $text }
sub eth { my ($to, $from, $type, $body) = @_; mac($to) . mac($from) . pack('n', $type) . $body }
sub arp {
    my ($operation, $mac, $ip, $to) = @_;
    pack('n n C C n', 1, 0x0800, 6, 4, $operation) . mac($mac) . inet_aton($ip) . "\0" x 6 . inet_aton($to);
}

if ($ARGV[0] eq 'hear') {
    my %heard;
    my $end = time + $ARGV[1];
    while (time < $end && !$heard{end}) {
        my $ready = '';
        vec($ready, fileno $wire, 1) = 1;
        next unless select($ready, undef, undef, 0.2) > 0;
        next unless recv($wire, my $frame, 4096, 0);
        # What this host sends is no news.
        $heard{$1}++ if $frame =~ /mvm:([a-z0-9-]+);/;
    }
    print join(' ', sort keys %heard), "\n";
    exit 0;
}

my (undef, $names, $mac, $ip, $gateway_mac, $gateway, $their_mac, $their_ip) = @ARGV;
my $all = 'ff:ff:ff:ff:ff:ff';
my $stranger = $ip =~ s/\d+$/77/r;
my $count = 0;
my %frames = (
    honest => sub { eth($their_mac, $mac, 0x0800, ip4($ip, $their_ip, 17, udp(9, 9, $_[0]))) },
    'spoofed-ip' => sub { eth($their_mac, $mac, 0x0800, ip4($stranger, $their_ip, 17, udp(9, 9, $_[0]))) },
    'spoofed-gateway' => sub { eth($their_mac, $mac, 0x0800, ip4($gateway, $their_ip, 17, udp(9, 9, $_[0]))) },
    'spoofed-mac' => sub { eth($their_mac, '02:00:00:00:00:99', 0x0800, ip4($ip, $their_ip, 17, udp(9, 9, $_[0]))) },
    'arp-claim' => sub { eth($all, $mac, 0x0806, arp(2, $mac, $gateway, $their_ip) . $_[0]) },
    'arp-theirs' => sub { eth($all, $mac, 0x0806, arp(1, $mac, $their_ip, $gateway) . $_[0]) },
    'dhcp-offer' => sub { eth($all, $mac, 0x0800, ip4($ip, '255.255.255.255', 17, udp(67, 68, $_[0]))) },
    'router-advertisement' => sub {
        my $body = pack('C C n C C n N N', 134, 0, 0, 64, 0, 1800, 0, 0) . $_[0];
        my $from = pack('H32', 'fe80000000000000000000fffe000001');
        my $to = pack('H32', 'ff020000000000000000000000000001');
        eth('33:33:00:00:00:01', $mac, 0x86dd, pack('N n C C', 0x60000000, length $body, 58, 255) . $from . $to . $body);
    },
    'ipv6' => sub {
        eth($their_mac, $mac, 0x86dd, pack('N n C C', 0x60000000, length $_[0], 59, 64) . "\0" x 32 . $_[0]);
    },
    'vlan' => sub { eth($their_mac, $mac, 0x8100, pack('n n', 5, 0x0800) . ip4($ip, $their_ip, 17, udp(9, 9, $_[0]))) },
    'spanning-tree' => sub { eth('01:80:c2:00:00:00', $mac, 0x0027, "\x42\x42\x03" . $_[0]) },
    'lldp' => sub { eth('01:80:c2:00:00:0e', $mac, 0x88cc, $_[0]) },
    'unknown-type' => sub { eth($their_mac, $mac, 0x88b5, $_[0]) },
    'multicast' => sub { eth('01:00:5e:00:00:fb', $mac, 0x0800, ip4($ip, '224.0.0.251', 17, udp(5353, 5353, $_[0]))) },
    'through-the-gateway' => sub { eth($gateway_mac, $mac, 0x0800, ip4($ip, $their_ip, 17, udp(9, 9, $_[0]))) },
    'redirect' => sub {
        my $body = pack('C C n a4', 5, 1, 0, inet_aton($ip)) . ip4($their_ip, $gateway, 17, $_[0]);
        eth($their_mac, $mac, 0x0800, ip4($gateway, $their_ip, 1, $body));
    },
    'arp-flood' => sub { eth($all, $mac, 0x0806, arp(1, $mac, $ip, "10.240.3." . ($count++ % 250)) . $_[0]) },
    'syn-flood' => sub {
        my $port = 1024 + $count++ % 60000;
        my $syn = sub { pack('n n N N C C n n n', $port, 8080, $port, 0, 0x50, 2, 65535, $_[0], 0) };
        my $pseudo = inet_aton($ip) . inet_aton($gateway) . pack('n n', 6, 20);
        eth($gateway_mac, $mac, 0x0800, ip4($ip, $gateway, 6, $syn->(sum($pseudo . $syn->(0)))));
    },
    end => sub { eth($their_mac, $mac, 0x0800, ip4($ip, $their_ip, 17, udp(9, 9, $_[0]))) },
);
for my $name (split /,/, $names) {
    my ($what, $times) = split /\*/, $name;
    my $make = $frames{$what} or die "no frame is called $what";
    for (1 .. $times || 1) {
        my $frame = $make->("mvm:$what;");
        $frame .= "\0" x (60 - length $frame) if length $frame < 60;
        # A full queue drops; who floods does not care.
        send($wire, $frame, 0, $eth0) or $!{ENOBUFS} or die "send $what: $!";
    }
}
