/* What the CUDA library shows to those who load it. */
#ifndef N2SR_EXPORT_H
#define N2SR_EXPORT_H

#ifdef _WIN32
#define N2SR_API extern "C" __declspec(dllexport)
#else
#define N2SR_API extern "C" __attribute__((visibility("default")))
#endif

#endif
