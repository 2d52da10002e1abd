/* See fault-whole.h: which operations fail. */
#include "fault-whole.h"

/* With data, packed clusters, zeros and holes. */
#define FILL(f) "io " f " write 0 40k; io " f " zero 100k 20k; " \
                "io " f " write 250k 30k; "
#define A "create a.qcow2 300k cluster_size=4k; " FILL("a.qcow2") \
          "io a.qcow2 packed 64k 16k; "
#define RAW "create r.raw 300k; " FILL("r.raw")
#define VDI "create v.vdi 300k block_size=4k; " FILL("v.vdi")
#define VMDK "create m.vmdk 2M; " FILL("m.vmdk") "io m.vmdk write 1M 70k; "
#define QCOW "create q.qcow 300k; " FILL("q.qcow") \
             "io q.qcow packed 64k 16k; "
#define OVERLAY(f, base) "create " f " 300k -b " base "; " \
                         "io " f " write 20k 30k; "
#define CHAIN VDI "create w.vdi 300k -b v.vdi block_size=8k; " \
              "io w.vdi write 20k 30k; "
#define MCHAIN VMDK "create o.vmdk 2M -b m.vmdk; io o.vmdk write 30k 80k; "
/* Three extents, the last one small. */
#define SPLIT "create s.vmdk 4100M subformat=twoGbMaxExtentSparse; " \
              "io s.vmdk write 0 70k; io s.vmdk write 4098M 64k; "
#define FLATS "create s.vmdk 300k subformat=twoGbMaxExtentFlat; " \
              FILL("s.vmdk")
#define SIXTY "123456789012345678901234567890123456789012345678901234567890"
#define STREAM A "convert a.qcow2 p.vmdk subformat=streamOptimized; "

const struct recipe recipes[] = {
    /* ---- new images ---- */
    { "create raw", "", "create n.raw 64k", RESUMES },
    { "create raw, falloc", "", "create n.raw 64k preallocation=falloc",
      RESUMES },
    { "create raw, full", "", "create n.raw 64k preallocation=full",
      RESUMES },
    { "create raw, in place", "", "create -i n.raw 64k", RESUMES },
    { "create raw over a file", RAW, "create r.raw 64k", RESUMES },
    { "create qcow", "", "create n.qcow 1M", RESUMES },
    { "create qcow over a base", RAW, "create n.qcow 1M -b r.raw", RESUMES },
    { "create vdi", "", "create n.vdi 256k", RESUMES },
    { "create vdi, static", "", "create n.vdi 256k static=on block_size=4k",
      RESUMES },
    { "create vdi over a base", VDI, "create n.vdi 300k -b v.vdi",
      RESUMES },
    { "create vmdk", "", "create n.vmdk 2M", RESUMES },
    { "create vmdk, zeroed grains", "", "create n.vmdk 2M zeroed_grain=on",
      RESUMES },
    { "create vmdk over a base", VMDK, "create n.vmdk 2M -b m.vmdk",
      RESUMES },
    { "create vmdk, unseen base", VMDK, "create n.vmdk 2M -u -b m.vmdk",
      RESUMES },
    { "create vmdk, flat", "", "create n.vmdk 64k subformat=monolithicFlat",
      RESUMES },
    { "create vmdk, flat, over one",
      "create n.vmdk 64k subformat=monolithicFlat",
      "create n.vmdk 128k subformat=monolithicFlat", RESUMES },
    { "create vmdk, split", "",
      "create n.vmdk 4100M subformat=twoGbMaxExtentSparse", RESUMES },
    { "create vmdk, split, over one", SPLIT,
      "create s.vmdk 3G subformat=twoGbMaxExtentSparse", RESUMES },
    { "create vmdk, split and flat", "",
      "create n.vmdk 64k subformat=twoGbMaxExtentFlat", RESUMES },
    { "create vmdk, stream", "",
      "create n.vmdk 2M subformat=streamOptimized", RESUMES },
    { "create vmdk, vmfs", "", "create n.vmdk 64k subformat=vmfs", RESUMES },
    { "create vmdk, vmfsSparse", "", "create n.vmdk 4M subformat=vmfsSparse",
      RESUMES },
    { "create vmdk, all settings", "",
      "create n.vmdk 2M ddb=a.b=c target=workstation uuid=derived "
      "toolsversion=1 cid=derived adapter_type=lsilogic", RESUMES },
    { "create qcow2", "", "create n.qcow2 1M", RESUMES },
    { "create qcow2, subclusters", "",
      "create n.qcow2 1M extended_l2=on cluster_size=16k", RESUMES },
    { "create qcow2, version 2", "", "create n.qcow2 1M compat=0.10",
      RESUMES },
    { "create qcow2, metadata", "",
      "create n.qcow2 256k preallocation=metadata cluster_size=512",
      RESUMES },
    { "create qcow2, metadata, subclusters", "",
      "create n.qcow2 256k preallocation=metadata extended_l2=on "
      "cluster_size=16k", RESUMES },
    { "create qcow2, falloc", "",
      "create n.qcow2 256k preallocation=falloc", RESUMES },
    { "create qcow2, full", "", "create n.qcow2 256k preallocation=full",
      RESUMES },
    { "create qcow2, data file", "",
      "create n.qcow2 256k data_file=data data_file_raw=on", RESUMES },
    { "create qcow2, data file, over both",
      "create n.qcow2 64k data_file=data",
      "create n.qcow2 256k data_file=data preallocation=metadata", 0 },
    { "create qcow2 over a chain", RAW OVERLAY("o.qcow2", "r.raw"),
      "create n.qcow2 300k -b o.qcow2", RESUMES },
    { "create qcow2, size of the base", RAW, "create n.qcow2 0 -z -b r.raw",
      RESUMES },
    { "create qcow2, unseen base", RAW, "create n.qcow2 300k -u -b r.raw",
      RESUMES },
    { "create qcow2, encrypted", "", "create n.qcow2 1M encryption=on",
      REFUSED },
    { "create qcow, encrypted", "", "create n.qcow 1M encryption=on",
      REFUSED },
    { "resolve", RAW, "resolve n.qcow2 0 -b r.raw; resolve n.vmdk 1M; "
      "resolve n.vdi 1M uuid=derived; resolve n.raw 1M; resolve n.qcow 1M",
      0 },

    /* ---- looking ---- */
    { "open raw", RAW, "open r.raw; open -w r.raw", 0 },
    { "open qcow", RAW QCOW "create o.qcow 300k -b r.raw; ",
      "open q.qcow; open -w o.qcow", 0 },
    { "open vdi", CHAIN, "open w.vdi", 0 },
    { "open vdi, to write", CHAIN, "open -w w.vdi", 0 },
    { "open vmdk", MCHAIN, "open o.vmdk", 0 },
    { "open vmdk, to write", VMDK, "open -w m.vmdk", 0 },
    { "open vmdk, split", SPLIT, "open s.vmdk; open -w s.vmdk", 0 },
    { "open vmdk, flat", FLATS, "open s.vmdk", 0 },
    { "open vmdk, stream", STREAM, "open p.vmdk", 0 },
    { "open vmdk, vmfsSparse",
      "create n.vmdk 4M subformat=vmfsSparse; io n.vmdk write 1M 10k",
      "open n.vmdk", 0 },
    { "open qcow2", A "bitmap a.qcow2 add b; io a.qcow2 write 4k 8k; "
      "snapshot a.qcow2 create s; ", "open a.qcow2; open -w a.qcow2", 0 },
    { "open qcow2, data file",
      "create n.qcow2 256k data_file=data; io n.qcow2 write 5k 30k",
      "open n.qcow2; open -w n.qcow2", 0 },
    { "open a chain", RAW OVERLAY("b.qcow2", "r.raw")
      OVERLAY("c.qcow", "b.qcow2") OVERLAY("d.qcow2", "c.qcow"),
      "open d.qcow2", 0 },
    { "inspect", A VDI VMDK QCOW, "inspect a.qcow2; inspect v.vdi; "
      "inspect m.vmdk; inspect q.qcow", VERDICT },
    { "inspect split and raw", SPLIT RAW, "inspect s.vmdk; inspect r.raw",
      VERDICT },
    { "measure", A RAW, "measure a.qcow2 raw; measure a.qcow2 qcow2; "
      "measure r.raw qcow2 cluster_size=512; measure a.qcow2 vdi; "
      "measure a.qcow2 vmdk; measure a.qcow2 vmdk subformat=vmfsSparse", 0 },
    { "measure a chain", A "bitmap a.qcow2 add b; " OVERLAY("o.qcow2",
      "a.qcow2"), "measure o.qcow2 qcow2; measure a.qcow2 qcow2", 0 },
    { "compare", A "convert a.qcow2 b.vdi block_size=4k",
      "compare a.qcow2 b.vdi", 0 },
    { "compare, strict", A "convert a.qcow2 b.qcow2",
      "compare -s a.qcow2 b.qcow2", 0 },
    { "compare, different", A VMDK, "compare a.qcow2 m.vmdk", 0 },
    { "compare with threads", A "convert a.qcow2 b.qcow", "compare -t 3 "
      "a.qcow2 b.qcow", 0 },

    /* ---- writing ---- */
    { "write vdi", CHAIN, "io w.vdi write 60k 50k; io w.vdi zero 62k 40k; "
      "io w.vdi write 18k 9k; io w.vdi discard 16k 16k", 0 },
    { "write vdi, standard blocks", "create n.vdi 3M",
      "io n.vdi write 1000k 100k; io n.vdi zero 1M 1M; "
      "io n.vdi unmap 0 1M; io n.vdi write 10k 2k", 0 },
    { "write vmdk", MCHAIN, "io o.vmdk write 60k 90k; io o.vmdk zero 1M 99k; "
      "io o.vmdk write 18k 9k", 0 },
    { "write vmdk, zeroed grains",
      "create n.vmdk 2M zeroed_grain=on; io n.vmdk write 0 300k",
      "io n.vmdk zero 20k 150k; io n.vmdk unmap 60k 150k; "
      "io n.vmdk discard 200k 100k; io n.vmdk write 70k 10k", 0 },
    { "write vmdk, new tables", "create n.vmdk 80M; io n.vmdk write 0 1k",
      "io n.vmdk write 40M 70k; io n.vmdk write 79M 1k", 0 },
    { "write vmdk, split", SPLIT, "io s.vmdk write 2047M 2M", 0 },
    { "write vmdk, packed", STREAM, "io p.vmdk packed 128k 64k", REFUSED },
    { "write vmdk, vmfsSparse",
      "create n.vmdk 4M subformat=vmfsSparse; io n.vmdk write 1M 10k",
      "io n.vmdk write 1020k 7k; io n.vmdk write 3M 2k", 0 },
    { "write qcow", RAW "create o.qcow 300k -b r.raw; "
      "io o.qcow packed 64k 8k",
      "io o.qcow write 60k 7k; io o.qcow zero 250k 3k; "
      "io o.qcow packed 128k 2k; io o.qcow discard 60k 2k", 0 },
    { "write qcow, in place", QCOW, "io q.qcow write 1k 70k; "
      "io q.qcow unmap 0 20k", 0 },
    { "write qcow2, data file",
      "create n.qcow2 256k data_file=data; io n.qcow2 write 5k 30k",
      "io n.qcow2 write 1k 99k; io n.qcow2 zero 4k 70k", 0 },
    { "vmstate", A, "vmstate a.qcow2 1k 9k", 0 },

    /* ---- copies ---- */
    { "convert to raw", A, "convert a.qcow2 n.raw", RESUMES },
    { "convert to raw, all written", A, "convert -S a.qcow2 n.raw", 0 },
    { "convert to raw, over a file", A RAW, "convert a.qcow2 r.raw",
      RESUMES },
    { "convert to raw, by the file system", RAW, "convert -C r.raw n.raw",
      0 },
    { "convert to qcow", A, "convert a.qcow2 n.qcow", RESUMES },
    { "convert to qcow, packed", A, "convert -c a.qcow2 n.qcow", RESUMES },
    { "convert to vdi", A, "convert a.qcow2 n.vdi block_size=4k", RESUMES },
    { "convert to vdi, static", A,
      "convert a.qcow2 n.vdi block_size=8k static=on", RESUMES },
    { "convert to vmdk", A, "convert a.qcow2 n.vmdk", RESUMES },
    { "convert to vmdk, flat", A,
      "convert a.qcow2 n.vmdk subformat=monolithicFlat", RESUMES },
    { "convert to vmdk, split and flat", A,
      "convert a.qcow2 n.vmdk subformat=twoGbMaxExtentFlat", RESUMES },
    { "convert to vmdk, split", SPLIT,
      "convert s.vmdk n.vmdk subformat=twoGbMaxExtentSparse", RESUMES },
    { "convert to vmdk, stream", A,
      "convert a.qcow2 n.vmdk subformat=streamOptimized", RESUMES },
    { "convert to vmdk, vmfsSparse", A,
      "convert a.qcow2 n.vmdk subformat=vmfsSparse", RESUMES },
    { "convert to qcow2", A, "convert a.qcow2 n.qcow2 cluster_size=4k",
      RESUMES },
    { "convert to qcow2, packed", A, "convert -c a.qcow2 n.qcow2", RESUMES },
    { "convert to qcow2, zstd", A,
      "convert -c a.qcow2 n.qcow2 compression_type=zstd cluster_size=8k",
      RESUMES },
    { "convert to qcow2, metadata", A,
      "convert a.qcow2 n.qcow2 preallocation=metadata", RESUMES },
    { "convert to qcow2, data file", A,
      "convert a.qcow2 n.qcow2 data_file=data", 0 },
    { "convert to qcow2, data file, raw", A,
      "convert a.qcow2 n.qcow2 data_file=data data_file_raw=on", 0 },
    { "convert to qcow2, subclusters", A,
      "convert a.qcow2 n.qcow2 extended_l2=on cluster_size=16k", 0 },
    { "convert over a base", RAW OVERLAY("o.qcow2", "r.raw"),
      "convert -B r.raw o.qcow2 n.qcow2 cluster_size=4k", RESUMES },
    { "convert over a base, vmdk", MCHAIN,
      "convert -B m.vmdk o.vmdk n.vmdk", RESUMES },
    { "convert with bitmaps", A "bitmap a.qcow2 add b; "
      "io a.qcow2 write 8k 20k", "convert -m a.qcow2 n.qcow2", 0 },
    { "convert two", A VDI, "convert a.qcow2 v.vdi n.qcow2", 0 },
    { "convert with threads", A, "convert -t 3 -W a.qcow2 n.qcow2", 0 },
    { "convert with threads, packed", A,
      "convert -t 3 -c a.qcow2 n.qcow2 cluster_size=4k", 0 },
    { "convert from vdi", CHAIN, "convert w.vdi n.qcow2", 0 },
    { "convert from vmdk", MCHAIN, "convert o.vmdk n.raw", 0 },
    { "convert from a stream", STREAM, "convert p.vmdk n.qcow2", 0 },
    { "convert from qcow", QCOW, "convert q.qcow n.raw", 0 },
    { "pipe raw", A, "stream a.qcow2 n.raw", 0 },
    { "pipe qcow2", A, "stream a.qcow2 n.qcow2 cluster_size=4k", 0 },
    { "pipe qcow2, packed", A, "stream -c a.qcow2 n.qcow2", 0 },
    { "pipe qcow2, all written", A, "stream -S a.qcow2 n.qcow2", 0 },
    { "pipe vmdk", A, "stream a.qcow2 n.vmdk subformat=streamOptimized", 0 },
    { "pipe vmdk, threads", A,
      "stream -t 3 a.qcow2 n.vmdk subformat=streamOptimized", 0 },
    { "pipe qcow by way of a file", A, "stream a.qcow2 n.qcow", 0 },
    { "pipe vmdk by way of a file", A, "stream a.qcow2 n.vmdk", 0 },
    { "copy into raw", A RAW, "copy a.qcow2 r.raw", RESUMES },
    { "copy into qcow2", VDI "create n.qcow2 300k cluster_size=4k; "
      "io n.qcow2 write 30k 200k", "copy v.vdi n.qcow2", RESUMES },
    { "copy into vdi", A VDI, "copy a.qcow2 v.vdi", RESUMES },
    { "copy into vmdk", A VMDK, "copy a.qcow2 m.vmdk", RESUMES },

    /* ---- sizes ---- */
    { "resize raw", RAW, "resize r.raw 500k; resize r.raw 100k", 0 },
    { "resize raw, falloc", RAW, "resize r.raw 400k -p falloc", RESUMES },
    { "resize raw, full", RAW, "resize r.raw 400k -p full", RESUMES },
    { "resize vdi, up", VDI, "resize v.vdi 900k", RESUMES },
    { "resize vdi, far up", "create v.vdi 300k block_size=512; "
      FILL("v.vdi"), "resize v.vdi 150M", RESUMES },
    { "resize vdi, down", VDI, "resize v.vdi 99k", RESUMES },
    { "resize vdi with base", CHAIN, "resize w.vdi 600k", RESUMES },
    { "resize vdi, static",
      "create v.vdi 300k static=on block_size=4k; " FILL("v.vdi"),
      "resize v.vdi 400k", RESUMES },
    { "resize vmdk, up", VMDK, "resize m.vmdk 4M", RESUMES },
    { "resize vmdk, far up", VMDK, "resize m.vmdk 5G", RESUMES },
    { "resize vmdk, down", VMDK, "resize m.vmdk 200k", RESUMES },
    { "resize vmdk, split, up", SPLIT, "resize s.vmdk 7G", RESUMES },
    { "resize vmdk, split, down", SPLIT, "resize s.vmdk 1G", RESUMES },
    { "resize vmdk, split, last", SPLIT, "resize s.vmdk 4099M", RESUMES },
    { "resize vmdk, flat",
      "create n.vmdk 64k subformat=monolithicFlat; io n.vmdk write 0 64k",
      "resize n.vmdk 128k -p falloc", RESUMES },
    { "resize vmdk, split and flat", "create n.vmdk 64k "
      "subformat=twoGbMaxExtentFlat; io n.vmdk write 0 64k",
      "resize n.vmdk 32k; resize n.vmdk 96k", 0 },
    { "resize vmdk, vmfsSparse", "create n.vmdk 4M subformat=vmfsSparse; "
      "io n.vmdk write 1M 10k", "resize n.vmdk 1029k", REFUSED },
    { "resize vmdk, stream", STREAM, "resize p.vmdk 4M", REFUSED },
    { "resize qcow, up", QCOW, "resize q.qcow 900k", RESUMES },
    { "resize qcow, far up", QCOW, "resize q.qcow 1G", RESUMES },
    { "resize qcow, down", QCOW, "resize q.qcow 65k", RESUMES },
    { "resize qcow, preallocated", QCOW, "resize q.qcow 1M -p full",
      REFUSED },
    { "resize qcow2, up", A, "resize a.qcow2 900k", RESUMES },
    { "resize qcow2, full", A, "resize a.qcow2 400k -p full", RESUMES },
    { "resize qcow2, falloc", A, "resize a.qcow2 400k -p falloc", RESUMES },
    { "resize qcow2, down", A, "resize a.qcow2 65k", RESUMES },
    { "resize qcow2, data file",
      "create n.qcow2 256k data_file=data; io n.qcow2 write 5k 30k",
      "resize n.qcow2 512k -p metadata; resize n.qcow2 100k", 0 },

    /* ---- settings ---- */
    { "amend vdi", CHAIN, "amend w.vdi uuid=01234567-89ab-cdef-0123-456789abcdef "
      "modification_uuid=11234567-89ab-cdef-0123-456789abcdef", FACTS },
    { "amend vdi, compact", VDI "io v.vdi zero 4k 20k; io v.vdi write 9k 1k; "
      "io v.vdi discard 250k 30k", "amend v.vdi compact=on", RESUMES },
    { "amend vmdk", VMDK, "amend m.vmdk adapter_type=lsilogic hwversion=10 "
      "toolsversion=3 ddb=x.y=z cid=12345678 "
      "uuid=00112233445566778899aabbccddeeff", FACTS },
    { "amend vmdk, parent", MCHAIN, "amend o.vmdk cid=87654321", FACTS },
    { "amend vmdk, flat", FLATS, "amend s.vmdk adapter_type=buslogic", 0 },
    { "amend vmdk, more than a sector",
      "create n.vmdk 64k subformat=monolithicFlat; io n.vmdk write 0 64k; "
      "amend n.vmdk ddb=x=" SIXTY SIXTY SIXTY, "amend n.vmdk hwversion=21",
      FACTS },
    { "amend qcow", QCOW, "amend q.qcow cluster_size=4k", REFUSED },
    { "amend raw", RAW, "amend r.raw size=1M", REFUSED },
    { "amend qcow2", A, "amend a.qcow2 compat=0.10", RESUMES | FACTS },
    { "amend qcow2, refcounts", A, "amend a.qcow2 refcount_bits=64",
      RESUMES | FACTS },
    { "amend qcow2, base and size", RAW OVERLAY("o.qcow2", "r.raw"),
      "amend o.qcow2 backing_fmt=raw size=1M lazy_refcounts=on", RESUMES },
    { "amend qcow2, downgrade", A "io a.qcow2 zero 0 280k; "
      "amend a.qcow2 refcount_bits=8", "amend a.qcow2 refcount_bits=16; "
      "amend a.qcow2 compat=0.10", FACTS },
    { "amend qcow2, data file", "create n.qcow2 256k data_file=data "
      "data_file_raw=on; io n.qcow2 write 5k 30k",
      "amend n.qcow2 data_file_raw=off", FACTS },

    /* ---- layers ---- */
    { "rebase qcow2", RAW "convert r.raw b.vdi block_size=4k; "
      "io b.vdi write 9k 99k; " OVERLAY("o.qcow2", "r.raw"),
      "rebase o.qcow2 b.vdi", RESUMES },
    { "rebase qcow2, packed", RAW OVERLAY("o.qcow2", "r.raw"),
      "rebase -c o.qcow2", RESUMES },
    { "rebase qcow2, name only", RAW OVERLAY("o.qcow2", "r.raw")
      "create b.raw 300k", "rebase -u o.qcow2 b.raw", 0 },
    { "rebase qcow", RAW OVERLAY("o.qcow", "r.raw"), "rebase o.qcow",
      RESUMES },
    { "rebase qcow, name only", RAW OVERLAY("o.qcow", "r.raw")
      "create another-name-that-is-longer.raw 300k",
      "rebase -u o.qcow another-name-that-is-longer.raw", 0 },
    { "rebase vdi", CHAIN "convert v.vdi u.vdi block_size=4k; ",
      "rebase w.vdi u.vdi", RESUMES },
    { "rebase vdi, to nothing", CHAIN, "rebase w.vdi", RESUMES },
    { "rebase vmdk", MCHAIN "create b.vmdk 2M; ", "rebase o.vmdk b.vmdk",
      RESUMES },
    { "rebase vmdk, name only", MCHAIN "create b.vmdk 2M; ",
      "rebase -u o.vmdk b.vmdk", 0 },
    { "rebase vmdk, to nothing", MCHAIN, "rebase o.vmdk", RESUMES },
    { "commit into raw", RAW OVERLAY("o.qcow2", "r.raw"), "commit o.qcow2",
      RESUMES },
    { "commit into a shorter raw", "create r.raw 100k; io r.raw write 0 99k; "
      OVERLAY("o.qcow2", "r.raw"), "commit o.qcow2", RESUMES },
    { "commit into vdi", VDI OVERLAY("o.qcow2", "v.vdi"), "commit o.qcow2",
      RESUMES },
    { "commit vdi into vdi", CHAIN, "commit w.vdi", RESUMES },
    { "commit vmdk into vmdk", MCHAIN, "commit o.vmdk", RESUMES | UNTIES },
    { "commit into vmdk, kept", VMDK "create o.qcow2 2M -b m.vmdk; "
      "io o.qcow2 write 1M 200k", "commit -k o.qcow2", RESUMES },
    { "commit qcow into qcow", QCOW OVERLAY("o.qcow", "q.qcow"),
      "commit o.qcow", RESUMES },
    { "commit two layers", RAW OVERLAY("b.qcow2", "r.raw")
      OVERLAY("c.qcow2", "b.qcow2") "io c.qcow2 zero 0 8k",
      "commit -d 2 c.qcow2", RESUMES },

    /* ---- checks; where tables are: as create lays them out ---- */
    { "check", A VDI VMDK QCOW, "check a.qcow2; check v.vdi; check m.vmdk; "
      "check q.qcow", 0 },
    { "check in too little memory", A, "check -y 4k a.qcow2", REFUSED },
    { "check a stream and parts", STREAM SPLIT, "check p.vmdk; check s.vmdk",
      0 },
    { "repair vdi, twice in one place", VDI "poke v.vdi 0x100008 0 0 0 0",
      "check -r all v.vdi", DAMAGED },
    { "repair vdi, outside", VDI "poke v.vdi 0x100008 0 0xff 0 0",
      "check -r all v.vdi", DAMAGED },
    { "repair vdi, cut off", VDI "cut v.vdi 2118k", "check -r all v.vdi",
      DAMAGED },
    { "repair vmdk, an empty table", VMDK "poke m.vmdk 13824 0 0 0 0; "
      "poke m.vmdk 13836 0 0 0 0", "check -r leaks m.vmdk", DAMAGED },
    { "repair vmdk, tables differ", VMDK "poke m.vmdk 11276 0 0 0 0",
      "check -r leaks m.vmdk", DAMAGED },
    { "repair vmdk, twice in one place", VMDK
      "poke m.vmdk 13836 128 0 0 0; poke m.vmdk 11276 128 0 0 0",
      "check -r all m.vmdk", DAMAGED },
    { "repair vmdk, outside", VMDK
      "poke m.vmdk 13836 0 0 0 1; poke m.vmdk 11276 0 0 0 1",
      "check -r all m.vmdk", DAMAGED },
    { "repair vmdk, tables outside", VMDK
      "poke m.vmdk 13312 0 0 0 64; poke m.vmdk 10752 0 0 0 64",
      "check -r all m.vmdk", DAMAGED },
    { "repair vmdk, stream without its end", STREAM "cut p.vmdk 70k",
      "check -r all p.vmdk", DAMAGED },
    { "repair vmdk, stream cut within", STREAM "cut p.vmdk 66k",
      "check -r all p.vmdk", DAMAGED },
    { "repair qcow, twice in one place", QCOW "poke q.qcow 0x100e 0x20",
      "check -r all q.qcow", DAMAGED },
    { "repair qcow, outside", QCOW "poke q.qcow 0x100c 1",
      "check -r all q.qcow", DAMAGED },
    { "repair qcow, a table outside", QCOW "poke q.qcow 52 1",
      "check -r all q.qcow", DAMAGED },
    { "repair qcow2, leaks", A "poke a.qcow2 0x200b 2",
      "check -r leaks a.qcow2", DAMAGED },
    { "repair qcow2, refcounts", A "poke a.qcow2 0x200d 0; "
      "poke a.qcow2 0x2009 0", "check -r all a.qcow2", DAMAGED },
    { "repair qcow2, twice in one place", A "snapshot a.qcow2 create s; "
      "io a.qcow2 write 0 4k; poke a.qcow2 0x400e 0x50",
      "check -r all a.qcow2", DAMAGED },
    { "repair qcow2, outside", A "poke a.qcow2 0x400a 1",
      "check -r all a.qcow2", DAMAGED },
    { "repair qcow2, marked corrupt", A "poke a.qcow2 79 2",
      "check -r all a.qcow2", DAMAGED },
    { "repair qcow2, no refcounts", A "poke a.qcow2 0x1006 0",
      "check -r all a.qcow2", DAMAGED },
    { "open qcow2, marked dirty", A "poke a.qcow2 79 1",
      "open -w a.qcow2", RESUMES },

    /* ---- snapshots, bitmaps ---- */
    { "snapshot", A, "snapshot a.qcow2 create s; io a.qcow2 write 2k 9k; "
      "snapshot a.qcow2 apply s; snapshot a.qcow2 delete s", 0 },
    { "bitmaps", A "bitmap a.qcow2 add b; io a.qcow2 write 8k 20k",
      "bitmap a.qcow2 disable b; bitmap a.qcow2 add c; "
      "bitmap a.qcow2 enable b; bitmap a.qcow2 clear b; "
      "bitmap a.qcow2 remove c", 0 },
    { "merge bitmaps", A "bitmap a.qcow2 add b; io a.qcow2 write 8k 20k; "
      "bitmap a.qcow2 disable b; bitmap a.qcow2 add c; "
      "io a.qcow2 write 100k 9k", "merge a.qcow2 c a.qcow2 b", 0 },
    { "merge bitmaps of two", A "bitmap a.qcow2 add b; "
      "io a.qcow2 write 8k 20k; " "create c.qcow2 300k; "
      "bitmap c.qcow2 add c; io c.qcow2 write 100k 9k",
      "merge c.qcow2 c a.qcow2 b", 0 },
};
const size_t n_recipes = IMG_COUNT(recipes);
