/* A management library of a machine that is written in the environment variable STUB: the calls that loadspan makes, answered as documented.
 *
 * STUB=four: GPU 0 and 1 joined by two NVLinks (and one that is down), GPU 2 and 3 by four through a switch; GPU 3 in two MIG instances and
 *            with two C2C links, one of them up. Addresses 0000:1B, 0000:43, 0000:52 and 10000:9D.
 * STUB=switched: GPU 0 and 1 with 3 and 2 links to NVSwitches, the others without.
 * STUB=dead: no driver. STUB=hung: never answers. STUB=wild: succeeds and answers nonsense.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct { char legacy[16]; unsigned domain, bus, device, id, subsystem; char address[32]; } pci_t;
typedef struct { unsigned long long total, free, used; } memory_t;
typedef struct { unsigned field, scope; int64_t timestamp, latency; unsigned type, status; union { double d; unsigned u; unsigned long long ull; } value; } field_t;

static const char *ADDRESSES[] = {"00000000:1B:00.0", "00000000:43:00.0", "00000000:52:00.0", "00010000:9D:00.0"};
static int handles[4], instances[2], open_count;

static int is(const char *name) { const char *stub = getenv("STUB"); return stub && !strcmp(stub, name); }
static int number(void *handle) { return (int)((int *)handle - handles); }

int nvmlInit_v2(void) { while (is("hung")) sleep(1); if (is("dead")) return 9; open_count++; return 0; }
int nvmlShutdown(void) { FILE *log = getenv("STUB_LOG") ? fopen(getenv("STUB_LOG"), "a") : NULL; open_count--; if (log) { fprintf(log, "%d\n", open_count); fclose(log); } return 0; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = is("wild") ? 0xFFFFFFFFu : 4; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle) { if (index > 3) return is("wild") ? (*handle = &handles[0], 0) : 2; *handle = &handles[3 - index]; return 0; }
int nvmlDeviceGetName(void *handle, char *name, unsigned length) { if (is("wild")) { memset(name, 0xFF, length); return 0; } snprintf(name, length, "NVIDIA STUB %d", number(handle)); return 0; }
int nvmlDeviceGetUUID(void *handle, char *uuid, unsigned length)
{
    if (is("wild")) { memset(uuid, 'x', length); return 0; }
    if (handle == &instances[0] || handle == &instances[1]) { snprintf(uuid, length, "MIG-0000000%d-1111-2222-3333-444444444444", (int)((int *)handle - instances)); return 0; }
    snprintf(uuid, length, "GPU-0000000%d-1111-2222-3333-444444444444", number(handle));
    return 0;
}
int nvmlDeviceGetPciInfo_v3(void *handle, pci_t *pci)
{
    memset(pci, 0, sizeof *pci);
    if (is("wild")) { memset(pci->address, 'z', sizeof pci->address); return 0; }
    snprintf(pci->address, sizeof pci->address, "%s", ADDRESSES[number(handle)]);
    return 0;
}
int nvmlDeviceGetMemoryInfo(void *handle, memory_t *memory)
{
    if (number(handle) == 2) return 3;
    memory->total = number(handle) == 1 ? ~0ull : 85899345920ull; memory->free = memory->used = 0;
    return 0;
}
int nvmlDeviceGetNvLinkState(void *handle, unsigned link, unsigned *active)
{
    int gpu = number(handle);
    if (is("switched")) { if (gpu > 1) return 3; if (link >= (gpu == 0 ? 3u : 2u)) return 2; *active = 1; return 0; }
    if (link >= (gpu < 2 ? 3u : 4u)) return 3;
    *active = !(gpu < 2 && link == 1);
    return 0;
}
int nvmlDeviceGetNvLinkRemoteDeviceType(void *handle, unsigned link, unsigned *type) { (void)link; *type = is("switched") || number(handle) > 1 ? 2 : 0; return 0; }
int nvmlDeviceGetNvLinkRemotePciInfo_v2(void *handle, unsigned link, pci_t *pci)
{
    (void)link;
    memset(pci, 0, sizeof *pci);
    if (number(handle) > 1) return 3;
    snprintf(pci->address, sizeof pci->address, "%s", ADDRESSES[1 - number(handle)]);
    return 0;
}
int nvmlDeviceGetMigMode(void *handle, unsigned *current, unsigned *pending) { if (number(handle) == 0) return 3; *current = *pending = number(handle) == 3; return 0; }
int nvmlDeviceGetMaxMigDeviceCount(void *handle, unsigned *count) { (void)handle; *count = 7; return 0; }
int nvmlDeviceGetMigDeviceHandleByIndex(void *handle, unsigned index, void **instance) { (void)handle; if (index != 0 && index != 4) return 6; *instance = &instances[index / 4]; return 0; }
int nvmlDeviceGetFieldValues(void *handle, int count, field_t *fields)
{
    for (int at = 0; at < count; at++) {
        fields[at].status = number(handle) == 3 ? 0 : 3;
        fields[at].value.ull = ~0ull;
        fields[at].value.u = fields[at].field == 170 ? 2 : fields[at].field == 171 ? fields[at].scope == 1 : 99;
    }
    return 0;
}
