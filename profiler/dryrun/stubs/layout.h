/* Where the runtime's structs have their fields, in CUDA 12 and 13: found by compiling offsetof, checked by
 * tests/test_dryrun_layout.py. */
#ifndef MEMPLAN_STUB_LAYOUT_H
#define MEMPLAN_STUB_LAYOUT_H
#if STUB_CUDA >= 13000
#define PLACE(cuda12, cuda13) (cuda13)
#else
#define PLACE(cuda12, cuda13) (cuda12)
#endif
#define PROPERTIES_BYTES PLACE(1032, 1008)
#define FUNCTION_BYTES 144
#define POINTER_BYTES PLACE(24, 88)
#define FUNCTION_maxThreadsPerBlock 24
#define FUNCTION_numRegs 28
#define FUNCTION_ptxVersion 32
#define FUNCTION_binaryVersion 36
#define FUNCTION_maxDynamicSharedSizeBytes 44
#define POINTER_type 0
#define POINTER_device 4
#define POINTER_devicePointer 8
#define POINTER_hostPointer 16
#define AT_name PLACE(0, 0)
#define AT_uuid PLACE(256, 256)
#define AT_totalGlobalMem PLACE(288, 288)
#define AT_sharedMemPerBlock PLACE(296, 296)
#define AT_regsPerBlock PLACE(304, 304)
#define AT_warpSize PLACE(308, 308)
#define AT_memPitch PLACE(312, 312)
#define AT_maxThreadsPerBlock PLACE(320, 320)
#define AT_maxThreadsDim PLACE(324, 324)
#define AT_maxGridSize PLACE(336, 336)
#define AT_totalConstMem PLACE(352, 352)
#define AT_major PLACE(360, 360)
#define AT_minor PLACE(364, 364)
#define AT_textureAlignment PLACE(368, 368)
#define AT_multiProcessorCount PLACE(388, 384)
#define AT_canMapHostMemory PLACE(400, 392)
#define AT_concurrentKernels PLACE(576, 560)
#define AT_pciBusID PLACE(584, 568)
#define AT_asyncEngineCount PLACE(600, 584)
#define AT_unifiedAddressing PLACE(604, 588)
#define AT_memoryBusWidth PLACE(612, 592)
#define AT_l2CacheSize PLACE(616, 596)
#define AT_maxThreadsPerMultiProcessor PLACE(624, 604)
#define AT_streamPrioritiesSupported PLACE(628, 608)
#define AT_globalL1CacheSupported PLACE(632, 612)
#define AT_localL1CacheSupported PLACE(636, 616)
#define AT_sharedMemPerMultiprocessor PLACE(640, 624)
#define AT_regsPerMultiprocessor PLACE(648, 632)
#define AT_managedMemory PLACE(652, 636)
#define AT_concurrentManagedAccess PLACE(676, 656)
#define AT_computePreemptionSupported PLACE(680, 660)
#define AT_cooperativeLaunch PLACE(688, 668)
#define AT_sharedMemPerBlockOptin PLACE(696, 672)
#define AT_maxBlocksPerMultiProcessor PLACE(712, 688)
#define AT_reservedSharedMemPerBlock PLACE(720, 696)
#define AT_memoryPoolsSupported PLACE(744, 720)
#endif
